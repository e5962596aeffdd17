/**
 * Contenders side by side: from what was measured, round by round, to ratios and the tables that
 * show them. Serves every row that has contenders; must not know what they do.
 *
 * A measurement is `{ round, contender, column, [metric key]: number | null }`; a metric is
 * `{ key, title, more }`, where `more` says that a greater figure is the better one.
 */
'use strict';

const { digits, spread, table, written } = require('./figures');

class Comparison {
  #measured;
  #columns;
  #names;

  constructor(measured) {
    this.#measured = measured;
    this.#columns = [...new Set(measured.map(({ column }) => column))];
    this.#names = [...new Set(measured.map(({ contender }) => contender))];
  }

  /** `{ contender: { column: spread } }` of one metric. */
  figures(metric) {
    return this.#grid((name, column) => spread(this.#of(name, column, metric)));
  }

  /**
   * How many times better than `base` each other contender is. Round by round, since what slowed
   * the machine down in one round slowed both down.
   */
  ratios(metric, base) {
    return this.#grid((name, column) => {
      if (name === base) return null;
      const theirs = this.#of(base, column, metric);
      const ours = this.#of(name, column, metric);
      return spread(ours.map((figure, round) => timesBetter(figure, theirs[round], metric)));
    });
  }

  #of(name, column, metric) {
    return this.#measured
      .filter((one) => one.contender === name && one.column === column)
      .map((one) => one[metric.key]);
  }

  #grid(cell) {
    const rows = this.#names.map((name) => {
      const cells = this.#columns.map((column) => [column, cell(name, column)]);
      return [name, Object.fromEntries(cells.filter(([, figures]) => figures !== null))];
    });
    return Object.fromEntries(rows.filter(([, cells]) => Object.keys(cells).length > 0));
  }
}

function timesBetter(figure, base, { more }) {
  if (typeof figure !== 'number' || typeof base !== 'number') return null;
  return more ? figure / base : base / figure;
}

/** So that tables below each other line up. */
const FIRST_COLUMN = 40;
const COLUMN = 20;

/** One grid as a table: contenders downwards, columns across. Nothing for an empty grid. */
function gridTable(title, grid, { titleOf, columnTitle }) {
  const columns = [...new Set(Object.values(grid).flatMap((cells) => Object.keys(cells)))];
  if (columns.length === 0) return '';
  return table([
    [title.padEnd(FIRST_COLUMN), ...columns.map((column) => columnTitle(column).padStart(COLUMN))],
    ...Object.entries(grid).map(([name, cells]) => [
      `  ${titleOf(name)}`,
      ...columns.map((column) => written(cells[column])),
    ]),
  ]);
}

/** A goal per column against the medians of one contender's ratios, as rows of a table. */
function goalRows(title, goals, cells = {}) {
  return Object.entries(goals ?? {})
    .filter(([column]) => cells[column])
    .map(([column, goal]) => {
      const { median } = cells[column];
      const verdict = median >= goal ? 'reached' : `missed by ${digits(goal - median)}`;
      return [`  ${title}, ${column}`, `at least ${goal}`, digits(median), verdict];
    });
}

module.exports = { Comparison, goalRows, gridTable };
