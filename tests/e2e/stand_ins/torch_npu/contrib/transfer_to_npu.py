"""``torch.cuda`` is ``torch.npu`` already."""
