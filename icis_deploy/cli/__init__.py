"""The command line: thin commands over `icis_deploy.pipeline`, in pipeline order."""
