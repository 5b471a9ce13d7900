"""Adapters (LoRA, LoKr, LoHa, OFT) by PEFT: insert, save, load, merge, export, and switch per song."""

from acestep.adapters.base import Adapter, AdapterDtype, BaseFormat, quantize_base
from acestep.adapters.export import AdapterLayout, export_adapter, merge_adapter
from acestep.adapters.io import BASE_FILE, adapter_base, is_adapter, load_adapter, save_adapter
from acestep.adapters.kinds import OFT, LoHa, LoKr
from acestep.adapters.lora import LoRA

__all__ = [
    "BASE_FILE",
    "OFT",
    "Adapter",
    "AdapterDtype",
    "AdapterLayout",
    "BaseFormat",
    "LoHa",
    "LoKr",
    "LoRA",
    "adapter_base",
    "export_adapter",
    "is_adapter",
    "load_adapter",
    "merge_adapter",
    "quantize_base",
    "save_adapter",
]
