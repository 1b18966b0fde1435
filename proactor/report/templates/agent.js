// How the conversations of an agent's log are filtered and sorted (agent_page.py).
showEntries({
  noun: "conversations",
  section: "talks",
  matches(talk, asked) {
    if (asked.kind && !talk[asked.kind]) return false;
    if (!asked.tool) return true;
    const kinds = asked.kind && asked.kind !== "refused" ? [asked.kind] : ["fire", "ask", "near"];
    return kinds.some((kind) => talk.tools.includes(`${kind} ${asked.tool}`));
  },
  orders: {
    first: (a, b) => (a.began < b.began ? -1 : a.began > b.began ? 1 : 0),
    fire: (a, b) => b.fire - a.fire,
    near: (a, b) => b.near - a.near,
  },
});
