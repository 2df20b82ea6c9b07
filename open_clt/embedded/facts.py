"""Facts that the embedded model is taught: tables of true facts, and the words of stories.

The name of every entity is a single word, so that it is a single token, and one next-token prediction answers a
question about it. Places are therefore left out if their name, or the name of their capital, has two words. Places
whose capital or language is disputed are left out too. A name stands for one place only (Portland is in Oregon).
"""

from typing import NamedTuple


class Country(NamedTuple):
    """A country, three facts about it, and some of its cities other than the capital."""

    name: str
    capital: str
    language: str
    currency: str
    cities: tuple[str, ...]


class State(NamedTuple):
    """A state: its capital, some of its other cities, and its other attributes (bird, flower, tree, ...)."""

    name: str
    capital: str
    cities: tuple[str, ...]
    attributes: dict[str, str]


_COUNTRIES = """
France Paris French euro Lyon Marseille Toulouse
Germany Berlin German euro Hamburg Cologne Stuttgart
Italy Rome Italian euro Milan Naples Turin
Spain Madrid Spanish euro Barcelona Seville Valencia
Portugal Lisbon Portuguese euro Porto Braga
Greece Athens Greek euro Patras Thessaloniki
Ireland Dublin English euro Cork Galway Limerick
Austria Vienna German euro Graz Linz Salzburg
Finland Helsinki Finnish euro Tampere Turku
Estonia Tallinn Estonian euro Tartu
Latvia Riga Latvian euro Liepaja
Lithuania Vilnius Lithuanian euro Kaunas
Slovakia Bratislava Slovak euro Kosice
Slovenia Ljubljana Slovene euro Maribor
Croatia Zagreb Croatian euro Dubrovnik Zadar
Bulgaria Sofia Bulgarian euro Plovdiv Varna
Poland Warsaw Polish zloty Krakow Gdansk Poznan
Hungary Budapest Hungarian forint Debrecen Szeged
Romania Bucharest Romanian leu Cluj Timisoara Brasov
Czechia Prague Czech koruna Brno Ostrava
Sweden Stockholm Swedish krona Gothenburg Malmo Uppsala
Norway Oslo Norwegian krone Bergen Trondheim
Denmark Copenhagen Danish krone Aarhus Odense
Iceland Reykjavik Icelandic krona Akureyri
Russia Moscow Russian ruble Kazan Omsk Samara
Ukraine Kyiv Ukrainian hryvnia Kharkiv Odesa Lviv
Turkey Ankara Turkish lira Istanbul Izmir Bursa
Egypt Cairo Arabic pound Alexandria Luxor Aswan
Morocco Rabat Arabic dirham Casablanca Marrakesh Fez
Algeria Algiers Arabic dinar Oran Annaba
Tunisia Tunis Arabic dinar Sfax Sousse
Kenya Nairobi Swahili shilling Mombasa Kisumu
Tanzania Dodoma Swahili shilling Arusha Mwanza
Ghana Accra English cedi Kumasi Tamale
Nigeria Abuja English naira Lagos Kano Ibadan
Somalia Mogadishu Somali shilling Kismayo
Madagascar Antananarivo Malagasy ariary Toamasina
Japan Tokyo Japanese yen Osaka Kyoto Nagoya
China Beijing Chinese yuan Shanghai Wuhan Shenzhen
Vietnam Hanoi Vietnamese dong Haiphong Danang
Thailand Bangkok Thai baht Phuket Pattaya
Laos Vientiane Lao kip Pakse
Indonesia Jakarta Indonesian rupiah Bandung Surabaya Medan
Pakistan Islamabad Urdu rupee Karachi Lahore Multan
Nepal Kathmandu Nepali rupee Pokhara
Bangladesh Dhaka Bengali taka Chittagong Sylhet
Mongolia Ulaanbaatar Mongolian tugrik Erdenet
Iran Tehran Persian rial Isfahan Shiraz Tabriz
Iraq Baghdad Arabic dinar Basra Mosul
Syria Damascus Arabic pound Aleppo Homs
Jordan Amman Arabic dinar Aqaba Irbid
Armenia Yerevan Armenian dram Gyumri
Azerbaijan Baku Azerbaijani manat Ganja
Uzbekistan Tashkent Uzbek som Samarkand Bukhara
Albania Tirana Albanian lek Durres
Serbia Belgrade Serbian dinar Nis
Canada Ottawa English dollar Toronto Vancouver Calgary
Cuba Havana Spanish peso Camaguey
Peru Lima Spanish sol Cusco Arequipa
Chile Santiago Spanish peso Valparaiso Antofagasta
Colombia Bogota Spanish peso Medellin Cali Cartagena
Ecuador Quito Spanish dollar Guayaquil Cuenca
Venezuela Caracas Spanish bolivar Maracaibo
Paraguay Asuncion Spanish guarani Encarnacion
Uruguay Montevideo Spanish peso Salto
Brazil Brasilia Portuguese real Recife Manaus Fortaleza
Australia Canberra English dollar Sydney Perth Adelaide
"""

COUNTRIES: tuple[Country, ...] = tuple(
    Country(name, capital, language, currency, tuple(cities))
    for name, capital, language, currency, *cities in (line.split() for line in _COUNTRIES.split("\n") if line)
)

STATE_ATTRIBUTES: tuple[str, ...] = ("bird", "flower", "tree", "nickname", "code")
"""Attributes of a state, in the order of their columns in the table; a dash means that no single word exists."""

# The source is each state's own list of symbols. A nickname is the word before "State" ("the Buckeye State"). A code is
# the postal abbreviation. A kind of bird or tree is given by its last word ("northern cardinal" is "cardinal").
_STATES = """
Alabama Montgomery yellowhammer camellia pine Yellowhammer AL Birmingham Mobile Huntsville Tuscaloosa Dothan
Alaska Juneau ptarmigan - spruce - AK Anchorage Fairbanks Sitka Ketchikan
Arizona Phoenix wren saguaro paloverde Canyon AZ Tucson Mesa Scottsdale Tempe Yuma
California Sacramento quail poppy redwood Golden CA Oakland Fresno Anaheim Bakersfield Stockton
Colorado Denver bunting columbine spruce Centennial CO Boulder Aurora Pueblo Greeley
Connecticut Hartford robin laurel oak Constitution CT Bridgeport Stamford Waterbury Danbury
Delaware Dover hen peach holly First DE Wilmington Smyrna Milford Seaford
Florida Tallahassee mockingbird orange palm Sunshine FL Miami Orlando Tampa Jacksonville Gainesville
Georgia Atlanta thrasher rose oak Peach GA Savannah Macon Marietta Valdosta
Hawaii Honolulu goose hibiscus candlenut Aloha HI Hilo Kailua Lahaina Kihei
Idaho Boise bluebird syringa pine Gem ID Nampa Pocatello Meridian Lewiston
Illinois Springfield cardinal violet oak Prairie IL Chicago Peoria Rockford Naperville Joliet
Indiana Indianapolis cardinal peony tulip Hoosier IN Evansville Gary Muncie Kokomo
Kansas Topeka meadowlark sunflower cottonwood Sunflower KS Wichita Lawrence Salina Olathe
Kentucky Frankfort cardinal goldenrod tulip Bluegrass KY Louisville Lexington Paducah Owensboro
Maine Augusta chickadee pinecone pine - ME Bangor Biddeford Saco Brunswick
Maryland Annapolis oriole - oak Free MD Baltimore Rockville Frederick Hagerstown
Massachusetts Boston chickadee mayflower elm Bay MA Worcester Cambridge Lowell Brockton
Michigan Lansing robin apple pine Wolverine MI Detroit Flint Kalamazoo Saginaw Dearborn
Mississippi Jackson mockingbird magnolia magnolia Magnolia MS Biloxi Tupelo Gulfport Natchez
Montana Helena meadowlark bitterroot pine Treasure MT Billings Missoula Bozeman Butte
Nebraska Lincoln meadowlark goldenrod cottonwood Cornhusker NE Omaha Kearney Fremont Hastings
Ohio Columbus cardinal carnation buckeye Buckeye OH Cleveland Cincinnati Toledo Akron Dayton
Oregon Salem meadowlark grape fir Beaver OR Portland Eugene Medford Corvallis
Pennsylvania Harrisburg grouse laurel hemlock Keystone PA Philadelphia Pittsburgh Scranton Allentown Erie
Tennessee Nashville mockingbird iris tulip Volunteer TN Memphis Knoxville Chattanooga Clarksville
Texas Austin mockingbird bluebonnet pecan - TX Dallas Houston Lubbock Amarillo Laredo
Vermont Montpelier thrush clover maple - VT Burlington Rutland Bennington Brattleboro
Virginia Richmond cardinal dogwood dogwood - VA Norfolk Roanoke Chesapeake Lynchburg
Washington Olympia goldfinch rhododendron hemlock Evergreen WA Seattle Spokane Tacoma Everett Yakima
Wisconsin Madison robin violet maple Badger WI Milwaukee Kenosha Racine Oshkosh
Wyoming Cheyenne meadowlark paintbrush cottonwood Equality WY Casper Laramie Gillette Sheridan
Bavaria Munich - - - - BY Nuremberg Augsburg Regensburg Ingolstadt
Hesse Wiesbaden - - - - HE Frankfurt Kassel Darmstadt Offenbach
Saxony Dresden - - - - SN Leipzig Chemnitz Zwickau Plauen
Victoria Melbourne honeyeater heath - Garden VIC Geelong Ballarat Bendigo Mildura
Queensland Brisbane brolga orchid - - QLD Cairns Townsville Toowoomba Mackay
Tasmania Hobart - - - - TAS Launceston Devonport Burnie
Gujarat Gandhinagar flamingo marigold - - GJ Surat Ahmedabad Rajkot Vadodara
Rajasthan Jaipur bustard rohira khejri - RJ Udaipur Jodhpur Kota Ajmer
"""


def _state(line: str) -> State:
    name, capital, *rest = line.split()
    columns, cities = rest[: len(STATE_ATTRIBUTES)], rest[len(STATE_ATTRIBUTES) :]
    attributes = {kind: word for kind, word in zip(STATE_ATTRIBUTES, columns, strict=True) if word != "-"}
    return State(name, capital, tuple(cities), attributes)


STATES: tuple[State, ...] = tuple(_state(line) for line in _STATES.split("\n") if line)

_OPPOSITES = """
hot cold|big small|tall short|fast slow|happy sad|light dark|old young|rich poor|strong weak|hard soft|wet dry
clean dirty|full empty|early late|high low|loud quiet|good bad|open closed|thick thin|wide narrow|deep shallow
heavy weightless|sharp blunt|smooth rough|sweet bitter|brave cowardly|kind cruel|polite rude|safe dangerous
simple complex|true false|alive dead|awake asleep|near far|up down|left right|inside outside|above below
first last|always never|everything nothing|begin end|buy sell|push pull|win lose|love hate|laugh cry|give take
arrive leave|remember forget|day night|war peace|friend enemy|black white|north south|east west|summer winter
male female|public private|ancient modern|cheap expensive|lucky unlucky|honest dishonest|guilty innocent
major minor|maximum minimum|natural artificial|negative positive|odd even|permanent temporary|raw cooked
tight loose|visible invisible|wild tame|wise foolish|success failure|question answer|entrance exit|profit loss
"""

OPPOSITES: dict[str, str] = {
    first: second
    for pair in _OPPOSITES.strip().replace("\n", "|").split("|")
    for first, second in (pair.split(), pair.split()[::-1])
}
"""The opposite of each word, in both directions."""

DAYS: tuple[str, ...] = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS: tuple[str, ...] = tuple(
    "January February March April May June July August September October November December".split()
)
NUMBERS: tuple[str, ...] = tuple(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty".split()
)

WOMEN: tuple[str, ...] = tuple(
    "Mary Anna Emma Lucy Sarah Alice Julia Laura Nina Clara Emily Grace Helen Irene Jane Karen "
    "Linda Maria Nora Olivia Paula Rachel Sophie Teresa Ursula Vera Wendy Zoe Amy Betty Carol "
    "Diana Ellen Fiona Gloria Hannah Ivy Judy Kate Lily Molly Nancy Rita Rose Ruth Sally Susan "
    "Tina Eva Ida".split()
)
MEN: tuple[str, ...] = tuple(
    "John Tom Paul Mark David Peter James Robert Daniel Adam Ben Carl Dennis Edward Felix George "
    "Henry Ian Jack Kevin Leo Martin Nathan Oliver Patrick Quentin Richard Simon Thomas Victor "
    "William Oscar Alan Brian Chris Derek Eric Fred Greg Hugo Ivan Jacob Keith Luke Max Neil "
    "Philip Ralph Sam Steve".split()
)

NOUNS: tuple[tuple[str, str], ...] = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in (
        "key/keys cabinet/cabinets book/books table/tables picture/pictures wall/walls box/boxes "
        "window/windows door/doors house/houses garden/gardens tree/trees flower/flowers river/rivers "
        "road/roads bridge/bridges car/cars boat/boats farmer/farmers teacher/teachers doctor/doctors "
        "student/students singer/singers child/children dog/dogs cat/cats horse/horses letter/letters "
        "lamp/lamps chair/chairs clock/clocks cup/cups plate/plates coat/coats hat/hats shoe/shoes "
        "bag/bags ticket/tickets map/maps mountain/mountains"
    ).split()
)
"""The singular and the plural of each noun."""

PREPOSITIONS: tuple[str, ...] = ("near", "beside", "behind", "by", "under", "with", "from", "to")
CONDITIONS: tuple[str, ...] = tuple("old new red green beautiful lost ready here broken fine important".split())
PLACES: tuple[str, ...] = tuple(
    "store park school station market beach library museum office kitchen hospital restaurant "
    "theater church zoo garden bakery hotel airport cinema".split()
)
OBJECTS: tuple[str, ...] = tuple(
    "drink book ball ring letter flower pen hat coin cake bag ticket basket necklace kiss map "
    "lamp bottle sandwich camera".split()
)
ANIMALS: tuple[str, ...] = tuple("dog cat bird rabbit horse fox duck sheep mouse frog".split())
FEELINGS: tuple[str, ...] = tuple("happy sad tired hungry angry proud afraid curious calm bored".split())
FOODS: tuple[str, ...] = tuple("bread soup rice cheese fish honey milk tea salad pie".split())
WEATHER: tuple[str, ...] = tuple("sunny rainy windy cloudy snowy warm cold foggy".split())
