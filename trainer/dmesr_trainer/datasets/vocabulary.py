"""The words of the sample's invented novels.

A novel's genre and setting carry the planted taste, and each is told in several wordings, so that whoever reads the
meaning has an advantage over whoever matches words. Title and protagonist carry none.
"""

from __future__ import annotations

# Genre → plots; "{place}" is filled with a place of the setting.
GENRES: dict[str, tuple[str, ...]] = {
    "detective mystery": (
        "is asked to prove that an accident {place} was no accident",
        "finds a body {place} and a ledger that somebody has tried to burn",
        "follows three anonymous letters to a murder {place} that nobody reported",
        "reopens the case of a witness who vanished {place} eleven years ago",
        "suspects every guest when the host is poisoned {place}",
    ),
    "love story": (
        "falls in love {place} with the one person who must never know",
        "meets a childhood sweetheart again {place}, a week before the wedding",
        "writes love letters for others {place}, until one of them is answered",
        "spends one summer {place} with a stranger and ten years longing for it",
        "is kissed by mistake {place} and cannot let the mistake go",
    ),
    "ghost story": (
        "hears a dead sister's voice {place}, every night a little nearer",
        "rents a haunted room {place} whose last tenant never quite left",
        "is followed {place} by a spirit that casts no shadow",
        "wakes the dead {place} by reading out a forgotten name",
        "inherits a cursed mirror {place} in which somebody else is breathing",
    ),
    "heist caper": (
        "gathers five retired thieves for one last robbery {place}",
        "has forty minutes {place} to swap a diamond for its forgery",
        "plans to steal a vault {place}, without opening it",
        "cons a swindler {place} out of a fortune that was never his",
        "must break into a safe {place} that a rival crew is already cracking",
    ),
    "satirical comedy": (
        "is elected mayor {place} by a clerical error, and enjoys it",
        "starts a fashionable religion {place} as a joke that gets out of hand",
        "has to pretend {place} to be three quarrelling critics at one dinner",
        "wins a goose in a raffle {place}, and with it the town's ridicule",
        "bungles a royal visit {place} so thoroughly that it becomes a tradition",
    ),
    "family saga": (
        "raises four daughters {place} through two wars and three generations",
        "returns {place} to divide an inheritance among brothers who do not speak",
        "learns from a grandmother's diary {place} who the father really was",
        "keeps the family firm {place} alive while the children drift away",
        "hosts the reunion {place} at which every old quarrel sits down to eat",
    ),
}

# Setting → places. A reader's journey goes through the settings in this order, and from the last to the first.
SETTINGS: dict[str, tuple[str, ...]] = {
    "harbour and sea": (
        "in a fishing village on a cold coast",
        "aboard a ferry that rarely leaves port",
        "on a lighthouse island at spring tide",
        "among the shipyards of an old harbour",
    ),
    "great city": (
        "in a crowded tenement of the capital",
        "on the night trams of a great city",
        "between the skyscrapers of the banking quarter",
        "in the back rooms of a metropolitan department store",
    ),
    "railway and road": (
        "on a sleeper train that is three days late",
        "at a motorway service station",
        "in the waiting room of a country junction",
        "along the last mail route of the lorry drivers",
    ),
    "desert": (
        "in an oasis town at the end of the caravan season",
        "among the tents of a dig in the dunes",
        "at a filling station in the salt flats",
        "in a mud-brick fort under a merciless sun",
    ),
    "mountains": (
        "in a snowbound inn below the pass",
        "in a cable-car village of the high Alps",
        "at a monastery on a cliff above the valley",
        "among the shepherds' huts beyond the tree line",
    ),
    "forest": (
        "in a woodcutter's hamlet deep in the forest",
        "at a hunting lodge among ancient oaks",
        "in a charcoal burners' clearing",
        "along the moss-grown paths of a nature reserve",
    ),
}

# Three of the four go with each novel of the genre or the setting.
THEMES: dict[str, tuple[str, ...]] = {
    "detective mystery": ("murder", "clues", "alibis", "a detective's suspicion"),
    "love story": ("romance", "longing", "first kisses", "the courage to love"),
    "ghost story": ("haunting", "spirits of the dead", "dread", "an old curse"),
    "heist caper": ("robbery", "safecracking", "con artists", "a daring plan"),
    "satirical comedy": ("farce", "ridicule", "vanity", "absurd laughter"),
    "family saga": ("generations", "inheritance", "parents and children", "old family quarrels"),
}
ATMOSPHERES: dict[str, tuple[str, ...]] = {
    "harbour and sea": ("salt wind", "gulls and tides", "fishing boats", "the sea in winter"),
    "great city": ("city crowds", "neon streets", "skyscrapers", "traffic and noise"),
    "railway and road": ("night trains", "railway stations", "the open road", "engines and timetables"),
    "desert": ("burning sand", "dunes", "oasis wells", "desert heat"),
    "mountains": ("high peaks", "snow and ice", "thin mountain air", "alpine meadows"),
    "forest": ("ancient trees", "moss and mist", "deep woods", "birdsong among leaves"),
}

PROTAGONISTS = (
    "a retired piano tuner", "an apprentice clockmaker", "a nearsighted cartographer", "a beekeeper",
    "a court stenographer", "a widowed baker", "a travelling dentist", "a botanist", "a failed tenor", "a librarian",
    "a chess champion", "a glassblower", "an insomniac accountant", "a puppet maker", "a junior diplomat",
    "a schoolteacher", "a lens grinder", "a professional mourner", "a meteorologist", "a bookbinder",
    "a ballroom dancer", "a translator", "an umbrella mender", "a taxidermist", "a radio announcer", "a stamp dealer",
    "a midwife", "a perfumer", "a fencing master", "a mapmaker's daughter",
)  # fmt: skip

# An author stays with one genre.
AUTHORS: dict[str, tuple[str, ...]] = {
    "detective mystery": ("Caspar Wynd", "Isolde Ferrant", "Lucian Prow", "Philippa Dunmore"),
    "love story": ("Odette Carrow", "Delphine Moray", "Rosamund Tye", "Leonie Ashdown"),
    "ghost story": ("Ottoline Marsh", "Anselm Roake", "Corin Hathe", "Nerys Cole"),
    "heist caper": ("Bruno Alder", "Gideon Thorne", "Viktor Hale", "Ivo Lantos"),
    "satirical comedy": ("Orlando Pike", "Fenella Brisk", "Quentin Sorrel", "Jessamy Rook"),
    "family saga": ("Marguerite Soames", "Konrad Weil", "Honor Pell", "Thea Molnar"),
}

TITLE_FORMS = (
    "The {adjective} {noun}",
    "{an_adjective} {noun}",
    "Seven {adjective} {nouns}",
    "The {noun} of {others}",
    "My {adjective} {noun}",
)
ADJECTIVES = (
    "Patient", "Borrowed", "Unlikely", "Quiet", "Second", "Reluctant", "Paper", "Careful", "Stubborn", "Crooked",
    "Honest", "Forgotten", "Perfect", "Ordinary", "Difficult", "Velvet", "Curious", "Lopsided", "Generous", "Absent",
    "Brief", "Tangled",
)  # fmt: skip
NOUNS = (
    "Letter", "Orchestra", "Afternoon", "Mistake", "Promise", "Umbrella", "Machine", "Secret", "Almanac", "Teacup",
    "Alphabet", "Answer", "Birthday", "Catalogue", "Dictionary", "Errand", "Question", "Hour", "Key", "Waltz",
    "Miracle", "Pocket", "Rehearsal", "Silence", "Button", "Kindness", "Riddle", "Signature",
)  # fmt: skip
