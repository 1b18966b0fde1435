"""The tools of the synthetic dialogues, with the words that people use for them.

Plain data, apart from the generator. Phrases are lower case and short because small models train on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from proactor.dialogue.catalog import Catalog, Effect, Parameter, ParameterType, Tool


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter. ``pool``: where its value is drawn from; ``say``: the value inside a sentence; ``ask``:
    the agent's questions for it. The opener names a ``lead`` slot's value, so it always comes first.
    """

    name: str
    pool: str
    say: str
    ask: tuple[str, ...] = ()
    type: ParameterType = "string"
    lead: bool = False


@dataclass(frozen=True, slots=True)
class Skill:
    """A tool and its words. ``openers``: requests for it; ``summary``: what the agent repeats before it acts;
    ``noun``: how people refer to it; ``done``: how the agent reports.
    """

    name: str
    domain: str
    effect: Effect
    confirm: bool
    description: str
    slots: tuple[Slot, ...]
    openers: tuple[str, ...]
    summary: str
    noun: str
    done: tuple[str, ...]

    def tool(self) -> Tool:
        """The skill as a tool of the catalog."""
        return Tool(
            name=self.name,
            description=self.description,
            effect=self.effect,
            confirm=self.confirm,
            parameters=tuple(Parameter(name=s.name, type=s.type) for s in self.slots),
        )


def _skill(
    tool: tuple[str, str, Effect, bool, str],
    slots: tuple[Slot, ...],
    openers: str,
    summary: str,
    noun: str,
    done: str,
) -> Skill:
    """``tool``: name, domain, effect, confirm, description. Phrases are separated by " | "."""
    return Skill(*tool, slots, _phrases(openers), summary, noun, _phrases(done))


def _slot(
    name: str,
    say: str = "{}",
    ask: str = "",
    *,
    pool: str = "",
    type: ParameterType = "string",
    lead: bool = False,
) -> Slot:
    """``pool``: the slot's name by default. Questions are separated by " | "."""
    return Slot(name, pool or name, say, _phrases(ask) if ask else (), type, lead)


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split(" | "))


def _time(ask: str) -> Slot:
    return _slot("time", "at {}", f"{ask} | at what time? | and the time?", type="time")


def _count(name: str, say: str, ask: str) -> Slot:
    return _slot(name, say, ask, pool="count", type="integer")


_DAY = _slot("day", "on {}", "what day? | which day suits you? | on what day?", type="date")
_TIME = _time("what time?")
_ORDER = _slot("order", "order {}", "what is the order number? | which order is it?")

SKILLS: tuple[Skill, ...] = (
    _skill(
        ("book_table", "dining", "write", True, "Reserve a table in a restaurant."),
        (
            _slot("place", "at {}", "which restaurant? | where would you like to eat?"),
            _DAY,
            _TIME,
            _count("people", "for {} people", "for how many people? | how many of you?"),
        ),
        (
            "can you book a table | i need a table | please reserve a table | we want to eat out | "
            "get us a table | i would like to have dinner out"
        ),
        "a table at {place}, {day} at {time} for {people}",
        "the table",
        "your table is booked. | the table is reserved. | done, the restaurant has you down.",
    ),
    _skill(
        ("find_place", "dining", "read", False, "Search for restaurants."),
        (
            _slot("food", "with {} food", "what kind of food? | which cuisine?"),
            _slot("city", "in {}", "in which city? | where should i look?"),
        ),
        (
            "find me a restaurant | is there a good place to eat | i am looking for a restaurant | "
            "where can i eat"
        ),
        "{food} food in {city}",
        "the search",
        "i found three places for you. | here are some places. | there is one near the center.",
    ),
    _skill(
        ("order_ride", "travel", "write", True, "Order a car with a driver."),
        (
            _slot("pickup", "from {}", "where should the driver pick you up? | from where?", pool="spot"),
            _slot("dropoff", "to {}", "where are you going? | what is the destination?", pool="spot"),
            _time("when should the car come?"),
        ),
        "i need a ride | can you get me a cab | please order a car | i need a taxi | get me a driver",
        "a car from {pickup} to {dropoff} at {time}",
        "the ride",
        "your driver is on the way. | the ride is ordered. | done, a car will come.",
    ),
    _skill(
        ("book_room", "travel", "irreversible", True, "Book a hotel room; the price is charged at once."),
        (
            _slot("hotel", "at {}", "which hotel? | at which hotel?"),
            _DAY,
            _count("nights", "for {} nights", "how many nights? | for how long?"),
        ),
        "i need a room | please book a hotel room | can you get me a room | we want to stay",
        "a room at {hotel} from {day} for {nights} nights",
        "the room",
        "your room is booked. | the hotel confirmed the room. | done, the room is yours.",
    ),
    _skill(
        ("check_weather", "travel", "read", False, "Look up the forecast."),
        (_slot("city", "in {}", "for which city? | where?"), _DAY),
        "how is the weather | will it rain | do i need an umbrella | what is the forecast",
        "the weather in {city} {day}",
        "the forecast",
        "it will be sunny. | expect some rain. | it looks cloudy but dry.",
    ),
    _skill(
        ("add_event", "calendar", "write", False, "Put an event into the calendar."),
        (_slot("title", lead=True), _DAY, _TIME),
        (
            "put {title} in my calendar | please add {title} | i have {title} coming up, note it down | "
            "schedule {title} for me | add {title} to my plans"
        ),
        "{title} {day} at {time}",
        "the event",
        "it is in your calendar. | added to your calendar. | done, the event is saved.",
    ),
    _skill(
        ("move_event", "calendar", "write", False, "Move a calendar event."),
        (
            _slot("title", lead=True),
            _slot("day", "to {}", "to which day? | what is the new day?", type="date"),
            _time("and the new time?"),
        ),
        "please move {title} | i have to shift {title} | can you reschedule {title} | {title} has to move",
        "{title} to {day} at {time}",
        "the change",
        "i moved it. | the event has its new time. | done, it is rescheduled.",
    ),
    _skill(
        ("cancel_event", "calendar", "irreversible", True, "Delete a calendar event; guests are told."),
        (_slot("title", lead=True), _DAY),
        (
            "cancel {title} | i can not make it to {title} | call off {title} | "
            "take {title} out of my calendar"
        ),
        "{title} {day} will be deleted",
        "the cancellation",
        "the event is gone. | i cancelled it. | done, i told the guests.",
    ),
    _skill(
        ("check_calendar", "calendar", "read", False, "See what is planned on a day."),
        (_DAY,),
        "am i free | what do i have planned | is there anything in my calendar | do i have meetings",
        "your plans {day}",
        "the lookup",
        "you are free all day. | you have one meeting. | nothing is planned.",
    ),
    _skill(
        ("set_reminder", "reminders", "write", False, "Remind the user of something."),
        (_slot("task", lead=True), _time("when should i remind you?")),
        (
            "remind me to {task} | i must not forget to {task} | i have to {task}, please remind me | "
            "do not let me forget to {task} | i always forget to {task}"
        ),
        "{task} at {time}",
        "the reminder",
        "i will remind you. | the reminder is set. | done, i will ping you.",
    ),
    _skill(
        ("set_alarm", "reminders", "write", False, "Set an alarm."),
        (_DAY, _TIME),
        "wake me up | set an alarm | i have to get up early | i need an alarm",
        "an alarm {day} at {time}",
        "the alarm",
        "the alarm is set. | your alarm is on. | done, sleep well.",
    ),
    _skill(
        ("send_message", "messages", "irreversible", True, "Send a text message."),
        (
            _slot("person", "to {}", "who should get it? | to whom?"),
            _slot("text", "saying {}", "what should it say? | what is the message?", pool="note"),
        ),
        "send a message | please write a text | can you text someone | i want to send a note",
        "a message to {person}: {text}",
        "the message",
        "the message is sent. | sent. | done, it went out.",
    ),
    _skill(
        ("track_order", "returns", "read", False, "See where an order is."),
        (_ORDER,),
        "where is my package | has my parcel been shipped | i am waiting for a delivery | track my parcel",
        "the status of order {order}",
        "the tracking",
        "it arrives tomorrow. | it left the warehouse. | it is out for delivery.",
    ),
    _skill(
        ("return_item", "returns", "write", True, "Start a return."),
        (
            _slot("item", lead=True),
            _ORDER,
            _slot("reason", "because it is {}", "why do you return it? | what is wrong with it?"),
        ),
        (
            "i want to return {item} | please take back {item} | i do not want to keep {item} | "
            "{item} has to go back"
        ),
        "{item} from order {order}, {reason}",
        "the return",
        "the return is started. | i mailed you the label. | done, send it back any time.",
    ),
    _skill(
        ("refund_order", "returns", "irreversible", True, "Pay an order back."),
        (_ORDER,),
        (
            "i want my money back | please refund me | i was charged twice | "
            "i never got my parcel, i want a refund"
        ),
        "a refund for order {order}",
        "the refund",
        "the money is on its way. | i refunded it. | done, you get it in three days.",
    ),
    _skill(
        ("open_ticket", "support", "write", False, "Report a broken device to support."),
        (
            _slot("device", "my {}", "which device is it? | what device?"),
            _slot("problem", "it {}", "what does it do? | what is the problem?"),
        ),
        "something is broken | i have trouble | i need technical help | i have a problem at home",
        "{device}: it {problem}",
        "the ticket",
        "i opened a ticket. | support knows about it now. | done, they will write to you.",
    ),
    _skill(
        ("book_repair", "support", "write", True, "Send a technician to the user."),
        (_slot("device", "for my {}", "for which device? | what should be fixed?"), _DAY, _TIME),
        "send a technician | i need a repair | can someone come and fix it | please book a repair visit",
        "a technician for the {device}, {day} at {time}",
        "the visit",
        "the technician will come. | the visit is booked. | done, someone will be there.",
    ),
    _skill(
        ("reset_password", "support", "irreversible", True, "Reset a password; the old one stops working."),
        (_slot("account", "my user name is {}", "what is your user name? | which account?"),),
        "i forgot my password | i can not log in | my login does not work | please reset my password",
        "a new password for {account}",
        "the reset",
        "the new password is in your mail. | i reset it. | done, check your inbox.",
    ),
)
BY_NAME: dict[str, Skill] = {skill.name: skill for skill in SKILLS}


def catalog() -> Catalog:
    """The tools of the synthetic dialogues."""
    return Catalog(tools=tuple(skill.tool() for skill in SKILLS))
