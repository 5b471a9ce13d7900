"""Small trained additions to a frozen network, through PEFT. Knows linear layers by name, not whose they are."""

from acestep.adapters.io import BASE_FILE, adapter_base, is_adapter, load_adapter, save_adapter
from acestep.adapters.lora import LoRA

__all__ = ["BASE_FILE", "LoRA", "adapter_base", "is_adapter", "load_adapter", "save_adapter"]
