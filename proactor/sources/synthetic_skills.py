"""What the synthetic dialogues talk about: tools with the words people use for them, value pools, small talk.

Plain data, kept apart from the generator. Phrases are lower case and short because small models train on
them; every value is woven in literally, so that a parameter can be copied from the conversation.
"""

from __future__ import annotations

from dataclasses import dataclass

from proactor.dialogue.catalog import Catalog, Effect, Parameter, ParameterType, Tool


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
        "call mom,call the bank,call the dentist,buy milk,buy flowers,buy a gift,pay the rent,pay the gas "
        "bill,"
        "water the plants,walk the dog,feed the cat,take my pills,take out the trash,send the report,"
        "pick up the kids,pick up the laundry,book the flights,check the oven,charge the car"
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


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter: the pool of its values, how a value is put into a sentence, how an agent asks for it.

    `lead` slots are part of the opener's wording and always said first.
    """

    name: str
    pool: str
    say: str
    ask: tuple[str, ...] = ()
    type: ParameterType = "string"
    lead: bool = False


@dataclass(frozen=True, slots=True)
class Skill:
    """A tool with the words for it: openers, what the agent repeats back, how it reports, how people refer to
    it.
    """

    name: str
    description: str
    domain: str
    effect: Effect
    confirm: bool
    slots: tuple[Slot, ...]
    openers: tuple[str, ...]
    summary: str
    noun: str
    done: tuple[str, ...]

    def tool(self) -> Tool:
        parameters = tuple(Parameter(name=s.name, type=s.type) for s in self.slots)
        return Tool(
            name=self.name,
            description=self.description,
            effect=self.effect,
            confirm=self.confirm,
            parameters=parameters,
        )


def _day(lead: bool = False) -> Slot:
    return Slot("day", "day", "on {}", ("what day?", "which day suits you?", "on what day?"), "date", lead)


def _time(ask: str = "what time?") -> Slot:
    return Slot("time", "time", "at {}", (ask, "at what time?", "and the time?"), "time")


def _order(lead: bool = False) -> Slot:
    return Slot(
        "order", "order", "order {}", ("what is the order number?", "which order is it?"), "string", lead
    )


SKILLS: tuple[Skill, ...] = (
    Skill(
        "book_table",
        "Reserve a table in a restaurant.",
        "dining",
        "write",
        True,
        (
            Slot("place", "place", "at {}", ("which restaurant?", "where would you like to eat?")),
            _day(),
            _time(),
            Slot("people", "count", "for {} people", ("for how many people?", "how many of you?"), "integer"),
        ),
        (
            "can you book a table",
            "i need a table",
            "please reserve a table",
            "we want to eat out",
            "get us a table",
            "i would like to have dinner out",
        ),
        "a table at {place}, {day} at {time} for {people}",
        "the table",
        ("your table is booked.", "the table is reserved.", "done, the restaurant has you down."),
    ),
    Skill(
        "find_place",
        "Search for restaurants.",
        "dining",
        "read",
        False,
        (
            Slot("food", "food", "with {} food", ("what kind of food?", "which cuisine?")),
            Slot("city", "city", "in {}", ("in which city?", "where should i look?")),
        ),
        (
            "find me a restaurant",
            "is there a good place to eat",
            "i am looking for a restaurant",
            "where can i eat",
        ),
        "{food} food in {city}",
        "the search",
        ("i found three places for you.", "here are some places.", "there is one near the center."),
    ),
    Skill(
        "order_ride",
        "Order a car with a driver.",
        "travel",
        "write",
        True,
        (
            Slot("pickup", "spot", "from {}", ("where should the driver pick you up?", "from where?")),
            Slot("dropoff", "spot", "to {}", ("where are you going?", "what is the destination?")),
            _time("when should the car come?"),
        ),
        ("i need a ride", "can you get me a cab", "please order a car", "i need a taxi", "get me a driver"),
        "a car from {pickup} to {dropoff} at {time}",
        "the ride",
        ("your driver is on the way.", "the ride is ordered.", "done, a car will come."),
    ),
    Skill(
        "book_room",
        "Book a hotel room; the price is charged at once.",
        "travel",
        "irreversible",
        True,
        (
            Slot("hotel", "hotel", "at {}", ("which hotel?", "at which hotel?")),
            _day(),
            Slot("nights", "count", "for {} nights", ("how many nights?", "for how long?"), "integer"),
        ),
        ("i need a room", "please book a hotel room", "can you get me a room", "we want to stay"),
        "a room at {hotel} from {day} for {nights} nights",
        "the room",
        ("your room is booked.", "the hotel confirmed the room.", "done, the room is yours."),
    ),
    Skill(
        "check_weather",
        "Look up the forecast.",
        "travel",
        "read",
        False,
        (Slot("city", "city", "in {}", ("for which city?", "where?")), _day()),
        ("how is the weather", "will it rain", "do i need an umbrella", "what is the forecast"),
        "the weather in {city} {day}",
        "the forecast",
        ("it will be sunny.", "expect some rain.", "it looks cloudy but dry."),
    ),
    Skill(
        "add_event",
        "Put an event into the calendar.",
        "calendar",
        "write",
        False,
        (Slot("title", "title", "{}", (), "string", True), _day(), _time()),
        (
            "put {title} in my calendar",
            "please add {title}",
            "i have {title} coming up, note it down",
            "schedule {title} for me",
            "add {title} to my plans",
        ),
        "{title} {day} at {time}",
        "the event",
        ("it is in your calendar.", "added to your calendar.", "done, the event is saved."),
    ),
    Skill(
        "move_event",
        "Move a calendar event.",
        "calendar",
        "write",
        False,
        (
            Slot("title", "title", "{}", (), "string", True),
            Slot("day", "day", "to {}", ("to which day?", "what is the new day?"), "date"),
            _time("and the new time?"),
        ),
        (
            "please move {title}",
            "i have to shift {title}",
            "can you reschedule {title}",
            "{title} has to move",
        ),
        "{title} to {day} at {time}",
        "the change",
        ("i moved it.", "the event has its new time.", "done, it is rescheduled."),
    ),
    Skill(
        "cancel_event",
        "Delete a calendar event; guests are told.",
        "calendar",
        "irreversible",
        True,
        (Slot("title", "title", "{}", (), "string", True), _day()),
        (
            "cancel {title}",
            "i can not make it to {title}",
            "call off {title}",
            "take {title} out of my calendar",
        ),
        "{title} {day} will be deleted",
        "the cancellation",
        ("the event is gone.", "i cancelled it.", "done, i told the guests."),
    ),
    Skill(
        "check_calendar",
        "See what is planned on a day.",
        "calendar",
        "read",
        False,
        (_day(),),
        ("am i free", "what do i have planned", "is there anything in my calendar", "do i have meetings"),
        "your plans {day}",
        "the lookup",
        ("you are free all day.", "you have one meeting.", "nothing is planned."),
    ),
    Skill(
        "set_reminder",
        "Remind the user of something.",
        "reminders",
        "write",
        False,
        (Slot("task", "task", "{}", (), "string", True), _time("when should i remind you?")),
        (
            "remind me to {task}",
            "i must not forget to {task}",
            "i have to {task}, please remind me",
            "do not let me forget to {task}",
            "i always forget to {task}",
        ),
        "{task} at {time}",
        "the reminder",
        ("i will remind you.", "the reminder is set.", "done, i will ping you."),
    ),
    Skill(
        "set_alarm",
        "Set an alarm.",
        "reminders",
        "write",
        False,
        (_day(), _time()),
        ("wake me up", "set an alarm", "i have to get up early", "i need an alarm"),
        "an alarm {day} at {time}",
        "the alarm",
        ("the alarm is set.", "your alarm is on.", "done, sleep well."),
    ),
    Skill(
        "send_message",
        "Send a text message.",
        "messages",
        "irreversible",
        True,
        (
            Slot("person", "person", "to {}", ("who should get it?", "to whom?")),
            Slot("text", "note", "saying {}", ("what should it say?", "what is the message?")),
        ),
        ("send a message", "please write a text", "can you text someone", "i want to send a note"),
        "a message to {person}: {text}",
        "the message",
        ("the message is sent.", "sent.", "done, it went out."),
    ),
    Skill(
        "track_order",
        "See where an order is.",
        "returns",
        "read",
        False,
        (_order(),),
        (
            "where is my package",
            "has my parcel been shipped",
            "i am waiting for a delivery",
            "track my parcel",
        ),
        "the status of order {order}",
        "the tracking",
        ("it arrives tomorrow.", "it left the warehouse.", "it is out for delivery."),
    ),
    Skill(
        "return_item",
        "Start a return.",
        "returns",
        "write",
        True,
        (
            Slot("item", "item", "{}", (), "string", True),
            _order(),
            Slot("reason", "reason", "because it is {}", ("why do you return it?", "what is wrong with it?")),
        ),
        (
            "i want to return {item}",
            "please take back {item}",
            "i do not want to keep {item}",
            "{item} has to go back",
        ),
        "{item} from order {order}, {reason}",
        "the return",
        ("the return is started.", "i mailed you the label.", "done, send it back any time."),
    ),
    Skill(
        "refund_order",
        "Pay an order back.",
        "returns",
        "irreversible",
        True,
        (_order(),),
        (
            "i want my money back",
            "please refund me",
            "i was charged twice",
            "i never got my parcel, i want a refund",
        ),
        "a refund for order {order}",
        "the refund",
        ("the money is on its way.", "i refunded it.", "done, you get it in three days."),
    ),
    Skill(
        "open_ticket",
        "Report a broken device to support.",
        "support",
        "write",
        False,
        (
            Slot("device", "device", "my {}", ("which device is it?", "what device?")),
            Slot("problem", "problem", "it {}", ("what does it do?", "what is the problem?")),
        ),
        ("something is broken", "i have trouble", "i need technical help", "i have a problem at home"),
        "{device}: it {problem}",
        "the ticket",
        ("i opened a ticket.", "support knows about it now.", "done, they will write to you."),
    ),
    Skill(
        "book_repair",
        "Send a technician to the user.",
        "support",
        "write",
        True,
        (
            Slot("device", "device", "for my {}", ("for which device?", "what should be fixed?")),
            _day(),
            _time(),
        ),
        ("send a technician", "i need a repair", "can someone come and fix it", "please book a repair visit"),
        "a technician for the {device}, {day} at {time}",
        "the visit",
        ("the technician will come.", "the visit is booked.", "done, someone will be there."),
    ),
    Skill(
        "reset_password",
        "Reset a password; the old one stops working.",
        "support",
        "irreversible",
        True,
        (Slot("account", "account", "my user name is {}", ("what is your user name?", "which account?")),),
        ("i forgot my password", "i can not log in", "my login does not work", "please reset my password"),
        "a new password for {account}",
        "the reset",
        ("the new password is in your mail.", "i reset it.", "done, check your inbox."),
    ),
)
BY_NAME: dict[str, Skill] = {skill.name: skill for skill in SKILLS}


def catalog() -> Catalog:
    """The tools of the synthetic dialogues."""
    return Catalog(tools=tuple(skill.tool() for skill in SKILLS))
