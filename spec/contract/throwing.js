'use strict';
/*
 * The process of the specs on throwing callbacks: locks, extends and releases 20 documents at URI by callbacks, some
 * of which throw, and prints as JSON how often each was called and what came as an uncaught exception. It must end by
 * itself.
 */

const mongoose = require('../support/mongoose');
const lockRelease = require('../..');

const LONG_MS = Number(process.env.LONG_MS);
const uncaught = [];
const rejections = [];
process.on('uncaughtException', (error) => uncaught.push(error.message));
process.on('unhandledRejection', (reason) => rejections.push(String(reason)));

async function main() {
  mongoose.set('strictQuery', true);
  await mongoose.connect(process.env.URI);
  const Order = mongoose.model('Order', new mongoose.Schema({}).plugin(lockRelease));
  const orders = await Order.create(Array.from({ length: 20 }, () => ({})));
  const answered = {};
  /** One verb on every document at once; resolves once all were answered. */
  const all = (verb, call, throwing) =>
    new Promise((resolve) => {
      let count = 0;
      orders.forEach((order, i) => {
        const callback = (error, doc) => {
          const name = `${verb} ${i}`;
          answered[name] = (answered[name] ?? 0) + (error || !doc ? 100 : 1);
          count += 1;
          if (count === orders.length) setTimeout(resolve, 50);
          if (throwing.includes(i)) throw new Error(name);
        };
        call(order, callback);
      });
    });
  await all('lock', (order, callback) => order.lock(LONG_MS, callback), [1, 2]);
  await all('extend', (order, callback) => order.extend(LONG_MS, callback), [3]);
  await all('release', (order, callback) => order.release(callback), [4]);
  await mongoose.disconnect();
  console.log(JSON.stringify({ uncaught, rejections, answered }));
}

main();
