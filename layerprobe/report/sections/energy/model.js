// Energy of a cluster in joule, as TwoStage, energy_curve and advantage compute it in Python.
const sidelinkOf = (cluster, settings) => cluster.topology === "server" ? 1 / (1 / settings.uplink + 1 / settings.downlink) : settings.sidelink;
const partsOf = (cluster, i, settings, rounds) => {
  const t0 = cluster.t0[i], spent = rounds * cluster.tasks * cluster.devices;
  return {
    center: settings.pue * t0 * cluster.center,
    uplink: t0 * cluster.up / settings.uplink,
    downlink: t0 > 0 ? cluster.tasks * cluster.devices * cluster.down * settings.bits / settings.downlink : 0,
    devices: spent * cluster.local,
    sidelink: spent * cluster.sent * settings.bits / sidelinkOf(cluster, settings),
  };
};
const totalOf = (cluster, i, settings, rounds) => {
  const parts = partsOf(cluster, i, settings, rounds);
  return parts.center + parts.downlink + parts.uplink + parts.devices + parts.sidelink;
};
const curveOf = (cluster, settings) => {
  const all = cluster.t0.map((_, i) => i), at = name => all.map(i => cluster[name][i] === null ? null : totalOf(cluster, i, settings, cluster[name][i]));
  const total = at("rounds"), reached = all.filter(i => !cluster.censored[i]);
  const best = reached.length ? reached.reduce((a, b) => total[b] < total[a] ? b : a) : -1;
  return {parts: all.map(i => partsOf(cluster, i, settings, cluster.rounds[i])), total, low: at("rounds_low"), high: at("rounds_high"), best};
};
const advantageOf = (cluster, settings) => {
  const least = (wanted, bounds) => cluster.t0.reduce((least, t0, i) => wanted(t0) && (bounds || !cluster.censored[i]) ? Math.min(least, totalOf(cluster, i, settings, cluster.rounds[i])) : least, Infinity);
  const none = t0 => t0 === 0, some = t0 => t0 > 0;
  const without = least(none, true), withoutMost = least(none, false), trained = least(some, true), trainedMost = least(some, false);
  if (trainedMost < without) return Math.log10(without / trainedMost);
  return withoutMost <= trained ? Math.log10(withoutMost / trained) : null;
};
