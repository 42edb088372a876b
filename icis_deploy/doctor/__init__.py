"""What `icis-deploy doctor` finds: what is installed, what each runtime does here, and whether a bundle is sound."""
