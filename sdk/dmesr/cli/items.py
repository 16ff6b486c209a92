"""placeholder until the readers are here"""

from .options import group

app = group("items", "Import, list, show and delete items.", examples=["dmesr-cli items import films.csv --id movieId"])
