"""`python -m icis_deploy`: the command line, where its script is not on the path."""

from icis_deploy.cli.main import main

main()
