"""Phrases of the synthetic dialogues that belong to no tool: assent, hedges, corrections, small talk."""

from __future__ import annotations

GREETINGS = (
    ("hi.", "hello, how can i help?"),
    ("hello there.", "hi, what can i do for you?"),
    ("good morning.", "good morning, what do you need?"),
    ("hey, are you there?", "yes, how can i help you?"),
)
CLOSINGS = (
    ("thanks, that is all.", "have a nice day."),
    ("great, bye.", "goodbye."),
    ("that was everything, thank you.", "you are welcome."),
    ("perfect, see you.", "see you soon."),
    ("ok, nothing else for today.", "take care."),
)
JOINERS = ("", "", "also, ", "another thing: ", "by the way, ", "oh, and ", "next, ")
ANSWERS = (
    "{}.",
    "{} please.",
    "i think {}.",
    "let us say {}.",
    "{} would be good.",
    "hmm, {}.",
    "{}, if possible.",
)
OFFERS = ("i have {} or {}. which one?", "{} or {} would work. what do you prefer?", "there is {} and {}.")
CHOICES = ("{} works.", "then {}.", "i take {}.", "{} is better for me.")
CONFIRMS = (
    "{}. shall i do it?",
    "so {}. is that right?",
    "just to confirm: {}?",
    "{}. do you want me to go ahead?",
    "let me repeat: {}. ok?",
)
ASSENTS = (
    "yes please.",
    "yes, go ahead.",
    "sounds good, do it.",
    "that is right.",
    "perfect, yes.",
    "sure, that works.",
    "correct.",
    "ok, please do.",
    "yep, all good.",
)
HEDGES = (
    ("hmm, let me think about it.", "take your time."),
    ("one second, i have to ask my wife.", "no problem, i will wait."),
    ("not yet, i am still looking at my plans.", "alright, tell me when."),
    ("wait, i have to check something first.", "sure, just let me know."),
)
AFTER_HEDGE = (
    "ok, go ahead.",
    "alright, yes, do it.",
    "she says yes, so please do.",
    "i checked, it is fine. go on.",
)
HOLDS = (
    "but do not do it yet.",
    "but wait until i say so.",
    "i am not sure yet though.",
    "but hold on with it.",
)
HOLD_REPLIES = ("ok, tell me when.", "alright, i will wait for you.", "fine, just say the word.")
RELEASES = (
    "ok, go ahead with {}.",
    "now please go on with {}.",
    "i am sure now about {}.",
    "{} is fine now, do it.",
)
CORRECTIONS = ("no wait, {} instead.", "sorry, i meant {}.", "actually make it {}.", "my mistake, {}.")
ALSO_CORRECT = ("and sorry, {} instead.", "oh, and i meant {}.", "and please change it: {}.")
WITHDRAWALS = (
    "no, forget {}.",
    "never mind, i do not need {} any more.",
    "let us skip {}.",
    "no, leave {}, i changed my mind.",
)
REVOCATIONS = ("wait, please drop {}.", "stop, i do not want {} any more.", "sorry, cancel {} again.")
DROPPED = ("ok, i left it.", "no problem, it is dropped.", "alright, forgotten.", "ok, then not.")
STALLS = (
    "one moment please.",
    "ok, give me a second.",
    "let me see.",
    "alright, i am on it.",
    "please hold on.",
)
FILLERS = ("sure.", "ok, no rush.", "thank you.", "take your time.", "i am waiting.", "fine.")
NUDGES = ("what about {}?", "did you forget {}?", "is {} done?", "you still have {} on your list, right?")
LATE = ("yes, now it is.", "sorry for the wait.", "just now.")

SMALL_TALK = (
    ("it is so hot here today.", "i hope it cools down."),
    ("my dog just stole my sandwich.", "oh no, poor sandwich."),
    ("are you a robot?", "i am an assistant, yes."),
    ("i slept so badly last night.", "sorry to hear that."),
    ("do you like music?", "i like all kinds of it."),
    ("the neighbors are loud again.", "that must be annoying."),
    ("my team won yesterday!", "congratulations."),
    ("sorry, the kids are running around here.", "no worries."),
    ("i really need a vacation.", "i can imagine."),
    ("what a long week.", "almost over."),
    ("my boss just said the same.", "i see."),
    ("can you hear me well?", "yes, loud and clear."),
    ("wow, that was fast.", "thank you."),
    ("i am so tired of paperwork.", "that makes two of us."),
    ("my phone is about to die.", "then let us be quick."),
    ("it started to snow outside!", "how lovely."),
    ("you are very kind, thanks.", "you are welcome."),
    ("sorry, i was away for a moment.", "no problem."),
)
# False friends: they sound like requests, but speak of the past, of other people or of wishes.
DISTRACTORS = (
    ("my sister booked a table at {place} last week.", "that is a nice place."),
    ("i was at {place} on {day}, it was full.", "they are popular."),
    ("{person} always takes a cab to {spot}.", "that is handy."),
    ("some day i will stay at {hotel} for a month.", "that sounds great."),
    ("i already have an alarm at {time}, that one is fine.", "good."),
    ("yesterday i forgot to {task}, so silly.", "it happens."),
    ("{person} told me that {title} was fun.", "good to hear."),
    ("my friend got {item} back to the shop last {day}.", "good for your friend."),
    ("the old {device} of {person} never broke.", "they built them well."),
    ("it rained in {city} all week.", "poor them."),
    ("order {order} came on time, by the way.", "i am glad."),
    ("last year i had {title} every week.", "that is a lot."),
    ("maybe i should cook {food} food some time.", "why not."),
    ("{person} wrote me: {note}.", "how nice."),
    ("i used to get up at {time}.", "that is early for some."),
    ("do people often ask for a room at {hotel}?", "some do."),
)
