// How the episodes of a page are filtered and sorted (conversations.py).
showEntries({
  noun: "groups of episodes",
  section: "episodes",
  matches(group, asked) {
    if (asked.part === "training" ? group.step < 0 : asked.part && group.part !== asked.part) return false;
    if (asked.change && group.change !== asked.change) return false;
    return group.episodes.some(([ending, level]) =>
      (!asked.ending || ending === asked.ending) && (!asked.level || level === asked.level));
  },
  orders: {
    first: (a, b) => a.step - b.step,
    best: (a, b) => b.score - a.score,
    worst: (a, b) => a.score - b.score,
    user: (a, b) => b.user - a.user,
    long: (a, b) => b.turns - a.turns,
  },
});
