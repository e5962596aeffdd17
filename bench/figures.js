/**
 * From raw measurements to what is read: medians with their spread, ratios, aligned tables. Pure
 * functions; must know nothing of what was measured.
 */
'use strict';

/** Median, lowest and highest of the numbers; null when there are none (nulls do not count). */
function spread(numbers) {
  const sorted = numbers.filter((number) => number !== null).toSorted((a, b) => a - b);
  if (sorted.length === 0) return null;
  const middle = Math.floor(sorted.length / 2);
  const median = sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  return { median, lowest: sorted[0], highest: sorted.at(-1) };
}

/**
 * How much y grows by x: the median of the slopes between any two points `[x, y]` (Theil and Sen's),
 * which a few points that are far off do not sway.
 */
function slope(points) {
  const slopes = points.flatMap(([x, y], index) =>
    points.slice(index + 1).map(([otherX, otherY]) => (otherY - y) / (otherX - x)),
  );
  return spread(slopes).median;
}

/** `median (lowest to highest)` with three significant digits, or a dash. */
function written(figures) {
  if (!figures) return '-';
  const { median, lowest, highest } = figures;
  return `${digits(median)} (${digits(lowest)} to ${digits(highest)})`;
}

function digits(number) {
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(number) || 1)));
  return number.toFixed(Math.min(decimals, 2));
}

/** Lines of text from rows of cells: the first column to the left, the others to the right. */
function table(rows) {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => (column ? cell.padStart(widths[column]) : cell.padEnd(widths[0])))
        .join('   ')
        .trimEnd(),
    )
    .join('\n');
}

module.exports = { digits, slope, spread, table, written };
