"""Of which MindSpeed imports ``transfer_to_npu``."""
