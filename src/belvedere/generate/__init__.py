"""Generating images: ViTGAN ("ViTGAN: Training GANs with Vision Transformers", ICLR 2022, arXiv:2107.04589)."""
