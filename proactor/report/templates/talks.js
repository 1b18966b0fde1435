// How the dialogues of a page are filtered and sorted (talks.py).
showEntries({
  noun: "dialogues",
  section: "dialogues",
  matches(talk, asked) {
    const changes = { gained: (gain) => gain > 0, lost: (gain) => gain < 0, same: (gain) => gain === 0 };
    if (asked.change && !changes[asked.change](talk.gain[0])) return false;
    if (!asked.outcome) return !asked.tool || talk.tools.includes(asked.tool);
    const wanted = (pair) => pair === `${asked.outcome} ${asked.tool}`
      || (!asked.tool && pair.startsWith(`${asked.outcome} `));
    return talk.outcomes[asked.system].some(wanted);
  },
  orders: {
    gained: (a, b) => b.gain[0] - a.gain[0] || b.gain[1] - a.gain[1],
    lost: (a, b) => a.gain[0] - b.gain[0] || a.gain[1] - b.gain[1],
    worst: (a, b) => a.after - b.after,
    best: (a, b) => b.after - a.after,
  },
});
