"""What keeps the store small and safe: house-keeping in the background, snapshots and their way back."""
