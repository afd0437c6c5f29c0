"""The Ray cluster that jobs run on."""

import os

if not os.environ.get("RAY_ADDRESS"):
    # A job run by hand starts a cluster of its own, for itself alone. Ray reads this switch when it is first
    # imported; without it, it replaces 127.0.0.1 by an outside address and listens on every interface.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
