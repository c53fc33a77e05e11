"""How fast fastib is, next to plain PyTorch and to torch.compile: `python -m benches.run`, from a checkout."""
