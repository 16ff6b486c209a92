"""How fast items are described and encoded, beside the bare engine and the bare encoder. See ../README.md."""
