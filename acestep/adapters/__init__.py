"""Small trained additions to a frozen network, through PEFT. Knows linear layers by name, not whose they are."""

from acestep.adapters.base import Base, Kept, hold
from acestep.adapters.export import AdapterLayout, export_adapter
from acestep.adapters.io import BASE_FILE, adapter_base, is_adapter, load_adapter, save_adapter
from acestep.adapters.kinds import OFT, LoHa, LoKr
from acestep.adapters.lora import Adapter, LoRA
from acestep.adapters.merge import merge_adapter

__all__ = [
    "BASE_FILE",
    "OFT",
    "Adapter",
    "AdapterLayout",
    "Base",
    "Kept",
    "LoHa",
    "LoKr",
    "LoRA",
    "adapter_base",
    "export_adapter",
    "hold",
    "is_adapter",
    "load_adapter",
    "merge_adapter",
    "save_adapter",
]
