"""Facts for the demo's preference set: for each topic, question and answer templates, and true statements.

A question and an answer are templates over ``{x}`` (what is asked about) and ``{y}`` (what the answer must contain).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Facts of one kind, with several question and answer templates."""

    name: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def _table(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``x = y`` entries separated by semicolons or line ends.

    >>> _table("France = Paris; Japan = Tokyo")
    (('France', 'Paris'), ('Japan', 'Tokyo'))
    """
    entries = [entry for line in text.splitlines() for entry in line.split(";") if entry.strip()]
    return tuple((x.strip(), y.strip()) for x, y in (entry.split("=") for entry in entries))


CAPITALS = _table("""
    Austria = Vienna; Argentina = Buenos Aires; Belgium = Brussels; Bulgaria = Sofia; Canada = Ottawa; Chile = Santiago
    China = Beijing; Croatia = Zagreb; Cuba = Havana; Denmark = Copenhagen; Egypt = Cairo; Estonia = Tallinn
    Finland = Helsinki; France = Paris; Germany = Berlin; Greece = Athens; Hungary = Budapest; Iceland = Reykjavik
    Iraq = Baghdad; Ireland = Dublin; Italy = Rome; Japan = Tokyo; Kenya = Nairobi; Latvia = Riga
    Mongolia = Ulaanbaatar
    Nepal = Kathmandu; Norway = Oslo; Peru = Lima; Poland = Warsaw; Portugal = Lisbon; Romania = Bucharest
    Spain = Madrid; Sweden = Stockholm; Thailand = Bangkok; Uruguay = Montevideo; Vietnam = Hanoi
""")

SYMBOLS = _table("""
    hydrogen = H; helium = He; lithium = Li; carbon = C; nitrogen = N; oxygen = O; fluorine = F; neon = Ne; sodium = Na
    magnesium = Mg; aluminium = Al; silicon = Si; sulfur = S; chlorine = Cl; potassium = K; calcium = Ca; iron = Fe
    copper = Cu; zinc = Zn; silver = Ag; tin = Sn; gold = Au; mercury = Hg; lead = Pb; uranium = U; nickel = Ni
""")

OPPOSITES = _table("""
    hot = cold; big = small; fast = slow; early = late; full = empty; hard = soft; high = low; day = night; loud = quiet
    new = old; open = closed; rich = poor; strong = weak; thick = thin; up = down; wet = dry; wide = narrow
    deep = shallow
    near = far; clean = dirty; happy = sad; heavy = light; inside = outside; always = never; front = back; true = false
""")

PLURALS = _table("""
    mouse = mice; goose = geese; tooth = teeth; foot = feet; child = children; man = men; woman = women; ox = oxen
    leaf = leaves; knife = knives; wolf = wolves; life = lives; sheep = sheep; city = cities; baby = babies; box = boxes
    tomato = tomatoes; loaf = loaves; person = people; half = halves
""")

PAST_TENSES = _table("""
    go = went; eat = ate; run = ran; see = saw; buy = bought; think = thought; write = wrote; take = took; give = gave
    sing = sang; swim = swam; drink = drank; fly = flew; know = knew; teach = taught; catch = caught; speak = spoke
    break = broke; begin = began; find = found
""")

YOUNG_ANIMALS = _table("""
    dog = puppy; cat = kitten; cow = calf; horse = foal; sheep = lamb; pig = piglet; goat = kid; bear = cub; deer = fawn
    duck = duckling; goose = gosling; swan = cygnet; frog = tadpole; kangaroo = joey; hen = chick; lion = cub
    hare = leveret; whale = calf
""")

CONVERSIONS = _table("""
    minutes are in an hour = 60; seconds are in a minute = 60; hours are in a day = 24; days are in a week = 7
    months are in a year = 12; years are in a century = 100; years are in a decade = 10
    centimetres are in a metre = 100
    metres are in a kilometre = 1000; grams are in a kilogram = 1000; inches are in a foot = 12; feet are in a yard = 3
    millimetres are in a centimetre = 10; cents are in a dollar = 100; items are in a dozen = 12
    millilitres are in a litre = 1000; degrees are in a right angle = 90; degrees are in a full circle = 360
    hours are in two days = 48; days are in two weeks = 14
""")

SHAPES = _table("""
    sides does a triangle have = 3; sides does a square have = 4; sides does a pentagon have = 5
    sides does a hexagon have = 6; sides does an octagon have = 8; legs does a spider have = 8
    legs does an ant have = 6
    legs does a dog have = 4; legs does a bird have = 2; wheels does a bicycle have = 2; wheels does a tricycle have = 3
    strings does a violin have = 4; arms does an octopus have = 8; faces does a cube have = 6
    letters does the English alphabet have = 26; continents does the Earth have = 7
    planets does the Solar System have = 8; players does a football team have on the field = 11
    squares does a chessboard have = 64; bones does an adult human body have = 206
""")

SEQUENCES = _table("""
    month comes after January = February; month comes after March = April; month comes after May = June
    month comes after July = August; month comes after September = October; month comes after November = December
    day comes after Monday = Tuesday; day comes after Wednesday = Thursday; day comes after Friday = Saturday
    day comes after Sunday = Monday; season comes after winter = spring; season comes after summer = autumn
    planet is closest to the Sun = Mercury; planet is the largest in the Solar System = Jupiter
    letter comes after B = C; letter comes after F = G; letter comes after P = Q; letter comes after X = Y
    number comes after 19 = 20; number comes after 99 = 100
""")

DEFINITIONS = _table("""
    a library = a place where people can read and borrow books; a volcano = a mountain that can erupt with molten rock
    an island = a piece of land surrounded by water; a desert = a dry region with very little rain
    a dictionary = a book that lists words and their meanings; a thermometer = a device that measures temperature
    a compass = a device that shows which way is north; a telescope = an instrument for seeing distant objects
    a bakery = a shop that makes and sells bread; an orphan = a child whose parents have died
    a vegetarian = a person who does not eat meat; an author = a person who writes books
    a glacier = a slow-moving mass of ice; a fossil = the preserved remains of ancient life
    a hurricane = a very strong tropical storm; an atlas = a book of maps; a harbour = a sheltered place for ships
    a dentist = a doctor who looks after teeth; a triangle = a shape with three sides; a decade = a period of ten years
    an eclipse = an event in which one body in space hides another; an orchard = a piece of land with fruit trees
""")

COLORS = _table("""
    a ripe banana = yellow; grass = green; snow = white; coal = black; a ripe lemon = yellow; a polar bear = white
    an emerald = green; a ruby = red; a ripe tomato = red; a clear daytime sky = blue; milk = white; a carrot = orange
    blood = red; a sapphire = blue; a flamingo = pink; chocolate = brown
""")

LANGUAGES = _table("""
    Brazil = Portuguese; France = French; Japan = Japanese; Germany = German; Italy = Italian; Mexico = Spanish
    Poland = Polish; Greece = Greek; Sweden = Swedish; Turkey = Turkish; Hungary = Hungarian; Denmark = Danish
    Iceland = Icelandic; Thailand = Thai; Argentina = Spanish; Australia = English; Egypt = Arabic
    Portugal = Portuguese
""")

PLACES = _table("""
    the Eiffel Tower = France; the Colosseum = Italy; the Taj Mahal = India; the Statue of Liberty = the United States
    Machu Picchu = Peru; the Parthenon = Greece; Big Ben = England; the Brandenburg Gate = Germany; Mount Fuji = Japan
    the Kremlin = Russia; the Great Sphinx = Egypt; Angkor Wat = Cambodia; the Sydney Opera House = Australia
    the Alhambra = Spain; Petra = Jordan; Stonehenge = England; the Blue Mosque = Turkey; the CN Tower = Canada
""")

AUTHORS = _table("""
    Hamlet = William Shakespeare; Don Quixote = Miguel de Cervantes; War and Peace = Leo Tolstoy; Emma = Jane Austen
    Moby-Dick = Herman Melville; Oliver Twist = Charles Dickens; Frankenstein = Mary Shelley; Dracula = Bram Stoker
    The Odyssey = Homer; Les Misérables = Victor Hugo; The Hobbit = J. R. R. Tolkien; Faust = Johann Wolfgang von Goethe
    The Divine Comedy = Dante Alighieri; Crime and Punishment = Fyodor Dostoevsky; Jane Eyre = Charlotte Brontë
    The Time Machine = H. G. Wells; The Trial = Franz Kafka; Treasure Island = Robert Louis Stevenson
""")

ADDITIONS = tuple((f"{a} + {b}", str(a + b)) for a, b in zip(range(2, 22), range(31, 111, 4), strict=True))
SUBTRACTIONS = tuple((f"{a} - {b}", str(a - b)) for a, b in zip(range(20, 80, 5), range(3, 39, 3), strict=True))
PRODUCTS = tuple((f"{a} * {b}", str(a * b)) for a in (2, 3, 5, 10) for b in (4, 6, 7, 9, 11))

TOPICS = (
    Topic(
        "capital",
        ("What is the capital of {x}?", "Name the capital city of {x}.", "Which city is the capital of {x}?"),
        ("The capital of {x} is {y}.", "{y} is the capital of {x}."),
        CAPITALS,
    ),
    Topic(
        "chemical symbol",
        (
            "What is the chemical symbol for {x}?",
            "Which chemical symbol stands for {x}?",
            "Give the chemical symbol of {x}.",
        ),
        ("The chemical symbol for {x} is {y}.", "The symbol is {y}."),
        SYMBOLS,
    ),
    Topic(
        "opposite",
        ('What is the opposite of "{x}"?', 'Give me a word that means the opposite of "{x}".'),
        ('The opposite of "{x}" is "{y}".', '"{y}" is the opposite.'),
        OPPOSITES,
    ),
    Topic(
        "plural",
        ('What is the plural of "{x}"?', 'How do you write "{x}" in the plural?'),
        ('The plural of "{x}" is "{y}".', 'The plural is "{y}".'),
        PLURALS,
    ),
    Topic(
        "past tense",
        ('What is the past tense of "{x}"?', 'How do you say "{x}" in the simple past?'),
        ('The past tense of "{x}" is "{y}".', 'It is "{y}".'),
        PAST_TENSES,
    ),
    Topic(
        "young animal",
        ("What do you call the young of a {x}?", "What is a baby {x} called?"),
        ("A baby {x} is called a {y}.", "It is called a {y}."),
        YOUNG_ANIMALS,
    ),
    Topic(
        "conversion", ("How many {x}?", "Tell me how many {x}."), ("There are {y}.", "The answer is {y}."), CONVERSIONS
    ),
    Topic("count", ("How many {x}?", "Quick question: how many {x}?"), ("The answer is {y}.", "It is {y}."), SHAPES),
    Topic("sequence", ("Which {x}?", "Do you know which {x}?"), ("It is {y}.", "The answer is {y}."), SEQUENCES),
    Topic(
        "definition",
        ("What is {x}?", "Define {x} in one sentence.", "Explain what {x} is."),
        ("It is {y}.",),
        DEFINITIONS,
    ),
    Topic(
        "colour", ("What colour is {x}?", "Which colour does {x} have?"), ("It is {y}.", "The colour is {y}."), COLORS
    ),
    Topic(
        "language",
        ("What is the main language of {x}?", "Which language do most people in {x} speak?"),
        ("The main language of {x} is {y}.", "Most people in {x} speak {y}."),
        LANGUAGES,
    ),
    Topic("place", ("In which country is {x}?", "Where is {x}?"), ("It is in {y}.", "You find it in {y}."), PLACES),
    Topic(
        "author", ("Who wrote {x}?", "Who is the author of {x}?"), ("{y} wrote it.", "{x} was written by {y}."), AUTHORS
    ),
    Topic("addition", ("What is {x}?", "Calculate {x}."), ("{x} = {y}.", "The sum is {y}."), ADDITIONS),
    Topic("subtraction", ("What is {x}?", "Work out {x}."), ("{x} = {y}.", "The difference is {y}."), SUBTRACTIONS),
    Topic("product", ("What is {x}?", "Multiply: {x}."), ("{x} = {y}.", "The product is {y}."), PRODUCTS),
)
