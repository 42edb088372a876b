"""The command line: thin commands over `icis_deploy.api.export`, in pipeline order."""
