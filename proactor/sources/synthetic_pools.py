"""The values that people name in the synthetic dialogues, by kind. A slot draws its value from one pool.

Every value is woven in literally, so that a parameter can be copied from the conversation. A pool is a short
list, which a model can learn by heart. An *open* value is composed of parts: there are hundreds or thousands
of its kind, and the only way to name one is to copy it.
"""

from __future__ import annotations

import random
from collections.abc import Collection


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


POOLS: dict[str, tuple[str, ...]] = {
    "day": (
        *_words("monday,tuesday,wednesday,thursday,friday,saturday,sunday,tomorrow"),
        *(
            f"{month} {day}"
            for month in ("march", "april", "may", "june")
            for day in (2, 5, 9, 14, 17, 21, 28)
        ),
    ),
    "time": (
        *(f"{hour} am" for hour in range(6, 12)),
        *(f"{hour} pm" for hour in range(1, 11)),
        *(f"{hour}:{minute}" for hour in range(7, 12) for minute in (15, 30, 45)),
        "noon",
    ),
    "place": _words(
        "luigi's,casa mia,the old mill,sakura,blue lotus,el toro,the corner cafe,green garden,marco's,"
        "red dragon,the river house,taj palace,bella vista,olive tree,king's table"
    ),
    "hotel": _words(
        "hotel aurora,the grand,sea view inn,hotel metro,park lodge,hotel milano,the harbor inn,"
        "sunset hotel,hotel central,pine lodge"
    ),
    "city": _words("paris,oslo,madrid,lima,boston,cairo,dublin,berlin,austin,osaka,rome,vienna,porto,denver"),
    "spot": _words(
        "the airport,the station,main street,the museum,city hall,the office,the stadium,the harbor,"
        "the market,north park,the hospital,the library"
    ),
    "food": _words("thai,mexican,italian,indian,greek,korean,vegan,french,sushi,burger"),
    "person": _words("anna,ben,carla,david,elena,felix,grace,hugo,iris,jonas,kim,leo,maria,nina,omar,paula"),
    "task": _words(
        "call mom,call the bank,call the dentist,buy milk,buy flowers,buy a gift,pay the rent,"
        "pay the gas bill,water the plants,walk the dog,feed the cat,take my pills,take out the trash,"
        "send the report,pick up the kids,pick up the laundry,book the flights,check the oven,charge the car"
    ),
    "title": _words(
        "team lunch,dentist,yoga class,budget review,piano lesson,book club,job interview,movie night,"
        "parent meeting,project kickoff,haircut,car service,choir practice,design review"
    ),
    "item": _words(
        "the jacket,the boots,the blue shirt,the lamp,the headphones,the backpack,the kettle,the jeans,"
        "the keyboard,the watch,the tent,the blender"
    ),
    "order": tuple(f"{letter}{number}" for letter in "bdfhkmprtx" for number in range(100, 1000, 7)),
    "reason": _words("too small,too big,broken,the wrong color,late,a duplicate,missing parts"),
    "device": _words("laptop,printer,router,phone,tablet,monitor,camera,speaker,heater,washer"),
    "problem": _words(
        "does not start,keeps freezing,makes a loud noise,will not charge,shows a black screen,"
        "drops the connection,smells burnt,turns off by itself"
    ),
    "account": _words("jonas88,mila.k,bluefox,k_anders,rosa22,tomcat5,ninja7,el_marco,sky.walk,pete_r"),
    "note": _words(
        "i will be late,the meeting is off,dinner is ready,call me back,i am on my way,"
        "thanks for the help,see you soon,the keys are inside"
    ),
    "count": tuple(str(n) for n in range(2, 10)),
}

_DEFINITE = _words("the,my,our,the new,the old,a")
_NAMES = _words(
    "anna,ben,carla,david,elena,felix,grace,hugo,iris,jonas,kim,leo,maria,nina,omar,paula,ruth,sven,tara,uma,"
    "viktor,wanda,yara,zoe"
)
_COLORS = _words(
    "red,blue,green,black,white,golden,silver,purple,orange,old,little,happy,quiet,wild,lucky,royal,blind,"
    "hungry,crooked,sleepy"
)
_SIGNS = _words(
    "dragon,lion,mill,garden,table,fox,anchor,lantern,bridge,tower,kitchen,barrel,spoon,duck,crown,oak,swan,"
    "bakery,harbor,goat"
)
_MONTHS = _words("january,february,march,april,may,june,july,august,september,october,november,december")
OPEN: dict[str, tuple[tuple[str, ...], ...]] = {
    "day": (_MONTHS, tuple(str(day) for day in range(1, 29))),
    "time": (
        tuple(f"{hour}:{minute:02}" for hour in range(1, 13) for minute in range(0, 60, 5)),
        ("am", "pm"),
    ),
    "place": (("the",), _COLORS, _SIGNS),
    "hotel": (("hotel", "the", "villa"), _COLORS, _SIGNS),
    "spot": (
        tuple(f"{name} street" for name in _NAMES),
        ("corner", "station", "school", "market", "bridge", "park"),
    ),
    "person": (_NAMES, _words("miller,lopez,rossi,novak,kaya,brandt,olsen,moreau,tanaka,silva")),
    "task": (
        _words(
            "call,buy,fix,clean,return,find,order,pack,paint,sell,move,wash,check,bring,print,sort,mail,"
            "collect,renew,visit,measure,lock,empty,repair"
        ),
        _DEFINITE,
        _words(
            "bank,dentist,bike,ticket,rent,window,passport,garden,printer,dog,cake,lamp,letter,door,coat,"
            "plumber,neighbor,car,boxes,shoes,report,keys,camera,flowers,chair,contract,tent,oven,photos,piano"
        ),
    ),
    "title": (
        _words(
            "budget,team,piano,yoga,design,chess,garden,school,family,press,sales,safety,french,swim,choir,"
            "book,film,science,travel,project,music,soccer,tax,history"
        ),
        _words(
            "review,lunch,lesson,class,club,meeting,interview,night,kickoff,training,party,walk,call,talk,"
            "workshop,dinner,visit,game,show,quiz"
        ),
    ),
    "item": (_DEFINITE, _COLORS, _words("jacket,boots,shirt,lamp,backpack,kettle,watch,tent,blender,scarf")),
    "account": (_NAMES, tuple(str(number) for number in range(10, 1000, 7))),
}
"""Parts of the open values, joined by spaces. Kinds that are missing here have short lists only."""


def draw_value(rng: random.Random, pool: str, share: float, taken: Collection[str] = ()) -> str:
    """A value of ``pool`` that is not in ``taken``: open with probability ``share``, else one of its list."""
    if share and pool in OPEN and rng.random() < share:
        while (value := " ".join(rng.choice(part) for part in OPEN[pool])) in taken:
            pass
        return value
    return rng.choice([value for value in POOLS[pool] if value not in taken])
