/**
 * What all rows with alternating rounds share: in which order the contenders run, and the line that
 * tells on a terminal how far it is.
 */
'use strict';

/** Nobody always comes first, or always after the same one. */
function rotated(list, by) {
  const turned = list.map((_, index) => list[(index + by) % list.length]);
  return by % 2 ? turned.toReversed() : turned;
}

function progress(line) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${line}`);
}

module.exports = { progress, rotated };
