"""Pictures of unknown origin: fetched from allowed hosts only, decoded only in processes that may do nothing else."""
