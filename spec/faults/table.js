'use strict';
/*
 * The table of a run of the fault suite, in Markdown, for terminals and for the README. It counts nothing itself.
 */

const COLUMNS = [
  ['nemesis', ({ nemesis }) => nemesis.title],
  ['strikes', ({ report }) => report.strikes],
  ['operations', ({ report }) => report.operations],
  ['acquisitions', ({ report }) => report.acquisitions],
  ['takeovers', ({ report }) => report.takeovers],
  ['refusals', ({ report }) => report.refusals],
  ['errors', ({ report }) => sum(Object.values(report.errors))],
  ['overlaps', ({ report }) => report.overlaps],
  ['lost updates', ({ report }) => report.lost],
  ['regressions', ({ report }) => report.regressions],
  ['stuck', ({ report }) => report.stuck],
  ['unanswered', ({ report }) => report.unanswered],
];

/** @param {{ nemesis: object, report: object, isControl?: boolean }[]} rows */
function table(rows) {
  const trials = rows.filter(({ isControl }) => !isControl);
  const controls = rows.filter(({ isControl }) => isControl);
  const cells = (row) => COLUMNS.map(([, cell]) => `${cell(row)}`);
  const lines = trials.map(cells);
  if (trials.length > 1) lines.push(totals(lines));
  lines.push(...controls.map((row) => [`(${cells(row)[0]})`, ...cells(row).slice(1)]));
  return `${align([COLUMNS.map(([name]) => name), ...lines])}\n\n${errors(rows)}`;
}

function totals(lines) {
  return COLUMNS.map((_, column) =>
    column === 0 ? 'all' : `${sum(lines.map((line) => Number(line[column])))}`,
  );
}

/** The errors by their class, over all trials but the controls. */
function errors(rows) {
  return rows
    .filter(({ report, isControl }) => !isControl && Object.keys(report.errors).length > 0)
    .map(({ nemesis, report }) => {
      const classes = Object.entries(report.errors).toSorted((a, b) => b[1] - a[1]);
      return `- ${nemesis.title}: ${classes.map(([name, count]) => `${count} × ${name}`).join(', ')}`;
    })
    .join('\n');
}

function align(lines) {
  const widths = lines[0].map((_, column) => Math.max(...lines.map((line) => line[column].length)));
  const row = (line) =>
    `| ${line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join(' | ')} |`;
  const rule = `| ${widths.map((width, i) => (i === 0 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`)).join(' | ')} |`;
  const [head, ...rest] = lines;
  return [row(head), rule, ...rest.map(row)].join('\n');
}

function sum(numbers) {
  return numbers.reduce((total, each) => total + each, 0);
}

module.exports = { table };
