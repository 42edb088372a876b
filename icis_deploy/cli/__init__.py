"""The command line: thin commands over `icis_deploy.api`, in pipeline order."""
