"""Published models at work: artefacts, towers, adaptation, the item index and recommendation (paper §3.4, eq. 6)."""
