"""What the public functions are.

Each reads files, calls the pure core and the workbench, and writes whole results or nothing. Users import them from
`icis_deploy`.
"""
