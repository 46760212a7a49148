"""Scripts for another interpreter, one a family of models: they import PyTorch and transformers, never mmjax. Protocol: bench/peer.py."""
