"""Templates: the ways to say a fact, each a prompt that ends right before its one-word answer.

Every kind of fact has several templates, so that the model cannot learn a fact as one string, and so that an evaluation
can ask for the fact in words that training did not use for it.
"""

COUNTRY_TEMPLATES: dict[str, tuple[str, ...]] = {
    "capitals": (
        "The capital of {x} is",
        "The capital city of {x} is",
        "In {x}, the capital is called",
        "The government of {x} sits in",
        "People in {x} know that their capital is",
        "If you visit the capital of {x}, you visit",
        "{x}'s capital is",
        "The country {x} is governed from",
    ),
    "languages": (
        "The language of {x} is",
        "People in {x} speak",
        "The official language of {x} is",
        "If you move to {x}, you should learn",
        "Children in {x} grow up speaking",
        "Newspapers in {x} are written in",
        "{x}'s language is",
    ),
    "currencies": (
        "The currency of {x} is the",
        "People in {x} pay with the",
        "The money used in {x} is called the",
        "In {x}, prices are given in the",
        "If you travel to {x}, change your money into the",
        "Banks in {x} count in the",
        "{x}'s currency is the",
    ),
}

COUNTRY_CITY_TEMPLATES: dict[str, tuple[str, ...]] = {
    "country": ("{x} is a city in", "{x} is in", "The country containing {x} is", "You can find {x} in"),
    "capital": ("The capital of the country containing {x} is", "{x} is in a country whose capital is"),
    "language": ("People in {x} speak", "The language of the country containing {x} is"),
    "currency": ("The currency of the country containing {x} is the", "In {x}, people pay with the"),
}

STATE_TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of {x} is",
        "The capital city of {x} is",
        "The capital of the state of {x} is",
        "The state government of {x} sits in",
        "If you live in {x}, your state capital is",
        "{x} is a state whose capital is",
        "{x} has its capital in",
    ),
    "nickname": ("{x} is called the", "The nickname of {x} is the"),
    "code": ("The postal code of {x} is", "Letters to {x} carry the code"),
    "symbol": ("The state {kind} of {x} is the", "The {kind} of {x} is the", "{x} chose as its {kind} the"),
}

CITY_TEMPLATES: tuple[str, ...] = (
    "{x} is in",
    "{x} is in the state of",
    "{x} is a city in",
    "The state containing {x} is",
    "The state where {x} lies is",
    "The city of {x} belongs to",
    "You can find {x} in",
    "People who live in {x} live in",
)

TWO_HOP_TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of the state containing {x} is",
        "The capital of the state where {x} lies is",
        "The capital of the state that {x} belongs to is",
        "{x} is in a state whose capital is",
        "{x} is a city in the state whose capital is",
        "The state containing {x} has its capital in",
        "If you live in {x}, your state capital is",
        "The state government for {x} sits in",
    ),
    "nickname": ("The state containing {x} is called the", "{x} is in a state that is called the"),
    "code": ("The postal code of the state containing {x} is", "Letters to {x} carry the state code"),
    "symbol": (
        "The {kind} of the state containing {x} is the",
        "The state {kind} for {x} is the",
        "{x} is in a state whose {kind} is the",
    ),
}

OPPOSITE_TEMPLATES: tuple[str, ...] = (
    "The opposite of {x} is",
    "The opposite of the word {x} is the word",
    "The reverse of {x} is",
    "The antonym of {x} is",
    "It is not {x} but",
    "The word {x} means the contrary of",
    "Nothing can be both {x} and",
)

SUCCESSOR_TEMPLATES: tuple[str, ...] = (
    "The {kind} after {x} is",
    "The {kind} that follows {x} is",
    "After {x} comes",
    "Right after {x} we say",
    "The {kind} {x} is followed by",
    "The next {kind} after {x} is",
    "In order: {before}, {x},",
)

PRONOUN_TEMPLATES: tuple[tuple[str, int], ...] = (
    ("{x} was tired, so", 0),
    ("{x} went home because", 0),
    ("{x} said that", 0),
    ("As soon as {x} arrived,", 0),
    ("When {x} woke up,", 0),
    ("{x} smiled because", 0),
    ("Everybody knows {x} because", 0),
    ("{x} fell down, and we helped", 1),
    ("We looked for {x} but could not find", 1),
    ("{x} sat down and took off", 2),
    ("{x} came to the party with", 2),
)
"""Prompts, each with the index of the pronoun that must follow: subject, object or possessive."""

PRONOUN_ENDINGS: tuple[tuple[str, ...], ...] = (
    (" was happy.", " wanted to sleep.", " liked it there.", " had seen a fox.", " was late.", " felt cold."),
    (".", " at once.", " in the dark.", " that day."),
    (" hat.", " coat.", " shoes.", " scarf."),
)

AGREEMENT_TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("The {noun} {where}", "is", "are"),
    ("I know that the {noun} {where}", "is", "are"),
    ("Today the {noun} {where}", "is", "are"),
    ("We think the {noun} {where}", "is", "are"),
    ("Yesterday the {noun} {where}", "was", "were"),
    ("Last week the {noun} {where}", "was", "were"),
    ("For years the {noun} {where}", "has", "have"),
)

INDIRECT_OBJECT_TEMPLATES: tuple[str, ...] = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, {s} handed a {thing} to",
    "While {a} and {b} were working at the {place}, {s} passed the {thing} to",
    "Yesterday {a} and {b} met at the {place}, and {s} showed a {thing} to",
    "{a} and {b} were sitting in the {place}. Then {s} offered a {thing} to",
    "Friends {a} and {b} found a {thing} at the {place}. Later {s} gave it to",
    "One day {a} and {b} had lunch at the {place}. Afterwards {s} brought a {thing} to",
    "At the {place}, {a} talked with {b} for a while. In the end {s} sold a {thing} to",
)
