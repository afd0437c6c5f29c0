"""The Prefect server, seen from outside: the calls we make, the plug-in of its command line."""
