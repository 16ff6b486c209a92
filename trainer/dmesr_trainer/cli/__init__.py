"""Commands that the trainer brings to `dmesr-cli`."""
