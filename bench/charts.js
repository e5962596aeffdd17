/**
 * `npm run bench:charts`: draws what the rows `grow` and `lock` have measured as SVG files in charts/.
 * Owns what they show and how they look; must not measure, nor calculate more than lies in results/.
 * The same results give the same files, byte for byte.
 */
'use strict';

const fs = require('node:fs');
const path = require('node:path');

const RESULTS = path.join(__dirname, 'results');
const CHARTS = path.join(__dirname, 'charts');

/** Told apart without their colours as well: by their labels, and the limit by its dashes. */
const STROKES = {
  original: { color: '#c2410c' },
  mongoose9: { color: '#6e7781' },
  driver: { color: '#8c959f' },
  ours: { color: '#1d4ed8', bold: true },
  limit: { color: '#57606a', dash: [5, 4] },
};
const INK = '#1f2328';
const FAINT = '#57606a';
const GRID = '#e4e8ec';

/**
 * Pixels. Nothing is left to be fitted: without a canvas Vega only estimates how wide a text is, and
 * a README shows a chart at its own size. Around the plot there is room for titles and labels.
 */
const WIDTH = 640;
const MARGIN = 16;
const ABOVE = 84;
const BELOW = 52;
const LINES = { height: 206, left: 78, right: 184 };
const LABEL_HEIGHT = 16;
const BARS = { heightOfOne: 34, left: 196, right: 76 };

/** What all charts share. White behind them, so that GitHub's dark theme does not shine through. */
const CONFIG = {
  aria: false,
  autosize: 'none',
  background: 'white',
  font: 'Helvetica, Arial, sans-serif',
  view: { stroke: null },
  title: {
    anchor: 'start',
    frame: 'group',
    color: INK,
    fontSize: 15,
    subtitleColor: FAINT,
    subtitleFontSize: 11,
    subtitleLineHeight: 15,
    subtitlePadding: 5,
    offset: 14,
  },
  axis: {
    domainColor: FAINT,
    gridColor: GRID,
    labelColor: FAINT,
    labelFlush: false,
    labelFontSize: 11,
    labelLimit: 0,
    labelPadding: 6,
    tickColor: FAINT,
    titleColor: INK,
    titleFontSize: 12,
    titleFontWeight: 'normal',
    titlePadding: 8,
  },
};

async function main() {
  const grow = read('grow');
  const lock = read('lock');
  const charts = {
    'throughput.svg': linesByFlight(grow, {
      metric: 'pairsPerSecond',
      title: 'Throughput of lock + release, by calls in flight',
      axis: 'pairs per second',
    }),
    'main-thread.svg': linesByFlight(grow, {
      metric: 'mainMicros',
      title: 'Main-thread CPU of lock + release, by calls in flight',
      // No longer than the plot is high: Vega moves the chart's title out of its way.
      axis: 'µs per pair',
    }),
    'main-thread-64.svg': barsByContender(lock, {
      metric: 'mainMicros',
      column: 64,
      title: 'Main-thread CPU of lock + release, 64 calls in flight',
      axis: 'CPU of the main thread per pair, µs',
    }),
  };
  fs.mkdirSync(CHARTS, { recursive: true });
  for (const [file, spec] of Object.entries(charts)) {
    const target = path.join(CHARTS, file);
    fs.writeFileSync(target, `${await drawn(spec)}\n`);
    console.log(`Written to ${path.relative(process.cwd(), target)}.`);
  }
}

function read(row) {
  const file = path.join(RESULTS, `${row}.json`);
  if (!fs.existsSync(file)) {
    throw new Error(`${path.relative(process.cwd(), file)} is not there: npm run bench -- ${row}`);
  }
  return JSON.parse(fs.readFileSync(file, 'utf8'));
}

/** Vega is there as ES modules only. It needs no canvas: it estimates how wide a text is. */
async function drawn(spec) {
  const [vega, vegaLite] = await Promise.all([import('vega'), import('vega-lite')]);
  const compiled = vegaLite.compile({ ...spec, config: CONFIG }).spec;
  return new vega.View(vega.parse(compiled), { renderer: 'none' }).toSVG();
}

/** A line for each contender, with a band from the lowest round to the highest. */
function linesByFlight(results, { metric, title, axis }) {
  const figures = results.parts.inFlight.figures[metric];
  const points = Object.entries(figures).flatMap(([name, cells]) =>
    Object.entries(cells).map(([flight, cell]) => ({ name, flight: Number(flight), ...cell })),
  );
  const flights = [...new Set(points.map(({ flight }) => flight))];
  const ticks = ticksUpTo(Math.max(...points.map(({ highest }) => highest)));
  const x = {
    field: 'flight',
    type: 'quantitative',
    scale: { type: 'log', domain: [flights[0], flights.at(-1)], nice: false },
    axis: { title: 'calls in flight', values: flights, format: ',d', grid: false },
  };
  const y = {
    field: 'median',
    type: 'quantitative',
    scale: { domain: [0, ticks.at(-1)], nice: false },
    axis: { title: axis, values: ticks, format: ',d', domain: false, ticks: false },
  };
  const color = colorBy(Object.keys(figures));
  return {
    ...frame(results, title, 'the band', LINES, LINES.height),
    layer: [
      {
        data: { values: points },
        mark: { type: 'area', opacity: 0.14 },
        encoding: { x, y: { ...y, field: 'lowest' }, y2: { field: 'highest' }, color },
      },
      ...Object.keys(figures).map((name) => ({
        data: { values: points.filter((point) => point.name === name) },
        mark: {
          type: 'line',
          strokeWidth: STROKES[name].bold ? 3 : 2,
          ...(STROKES[name].dash && { strokeDash: STROKES[name].dash }),
          point: { filled: true, size: STROKES[name].bold ? 50 : 36 },
        },
        encoding: { x, y, color },
      })),
      ...Object.keys(figures).map((name) => ({
        data: { values: labelsAtTheEnd(points, flights.at(-1), ticks.at(-1)).filter(byName(name)) },
        mark: { type: 'text', align: 'left', dx: 10, fontSize: 12, ...weightOf(name) },
        encoding: { x, y: { ...y, field: 'at' }, text: { field: 'title' }, color },
      })),
    ],
  };
}

/** A bar for each contender, the best one at the bottom. */
function barsByContender(results, { metric, column, title, axis }) {
  const figures = results.figures[metric];
  const bars = Object.entries(figures)
    .map(([name, cells]) => ({
      name,
      title: titleOf(name),
      value: `${Math.round(cells[column].median).toLocaleString('en-US')} µs`,
      ...cells[column],
    }))
    .toSorted((a, b) => b.median - a.median);
  const ticks = ticksUpTo(Math.max(...bars.map(({ highest }) => highest)));
  const x = {
    field: 'median',
    type: 'quantitative',
    scale: { domain: [0, ticks.at(-1)], nice: false },
    axis: { title: axis, values: ticks, format: ',d', domain: false, ticks: false },
  };
  const y = {
    field: 'title',
    type: 'nominal',
    sort: bars.map((bar) => bar.title),
    axis: { title: null, labelFontSize: 12, labelColor: INK, domain: false, ticks: false },
  };
  const color = colorBy(Object.keys(figures));
  return {
    ...frame(results, title, 'the thin line', BARS, bars.length * BARS.heightOfOne),
    data: { values: bars },
    layer: [
      { mark: { type: 'bar', height: 18 }, encoding: { x, y, color } },
      {
        mark: { type: 'rule', color: INK, strokeWidth: 1.5 },
        encoding: { x: { ...x, field: 'lowest' }, x2: { field: 'highest' }, y },
      },
      {
        mark: { type: 'text', align: 'left', dx: 6, fontSize: 12, color: INK },
        encoding: {
          x: { ...x, field: 'highest' },
          y,
          text: { field: 'value' },
        },
      },
    ],
  };
}

/** Title, size and margins: what is said of the measurement, in the same words everywhere. */
function frame({ cores, cpu, serverVersion, lengths }, title, spreadMark, { left, right }, height) {
  return {
    width: WIDTH - left - right,
    height,
    padding: { left, right, top: ABOVE, bottom: BELOW },
    title: {
      text: title,
      subtitle: [
        `Median of ${lengths.rounds} rounds; ${spreadMark} goes from the lowest to the highest.`,
        `Client and MongoDB ${serverVersion} on one machine: ${cores} x ${cpu}.`,
      ],
      dx: MARGIN - left,
    },
  };
}

function colorBy(names) {
  return {
    field: 'name',
    type: 'nominal',
    scale: { domain: names, range: names.map((name) => STROKES[name].color) },
    legend: null,
  };
}

function weightOf(name) {
  return { fontWeight: STROKES[name].bold ? 'bold' : 'normal' };
}

function byName(wanted) {
  return ({ name }) => name === wanted;
}

function titleOf(name) {
  return require(`./contenders/${name}`).title;
}

/** What each line is called, at its end; moved apart where lines end too near to each other. */
function labelsAtTheEnd(points, end, top) {
  const gap = (LABEL_HEIGHT / LINES.height) * top;
  const ends = points
    .filter(({ flight }) => flight === end)
    .toSorted((a, b) => a.median - b.median)
    .map(({ name, median }) => ({ name, flight: end, title: titleOf(name), at: median }));
  for (let index = 1; index < ends.length; index++) {
    ends[index].at = Math.max(ends[index].at, ends[index - 1].at + gap);
  }
  return ends;
}

/** Round numbers from 0 to the first one that is not below the highest figure: four steps to eight. */
function ticksUpTo(highest) {
  const power = 10 ** Math.floor(Math.log10(highest));
  const step = power * [0.2, 0.25, 0.5, 1, 2].find((part) => highest / (part * power) <= 8);
  return Array.from({ length: Math.ceil(highest / step) + 1 }, (_, index) => index * step);
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
