/**
 * The document that every contender locks: an order of about 300 bytes of BSON, or of another size
 * where a row is about that. Owns its shape, so that all of them lock the same thing. Must not require
 * a Mongoose: each contender brings its own.
 */
'use strict';

/** The paths of an order, for the schemas of the contenders that have one. */
const ORDER_PATHS = {
  number: Number,
  status: String,
  customer: String,
  email: String,
  address: { street: String, postcode: String, city: String },
  currency: String,
  total: Number,
  articles: [String],
  placedAt: Date,
};

/** One order as it is stored; `locked` lies in the past, by any clock, so that it can be locked. */
function storedOrder(number) {
  return {
    number,
    status: 'paid',
    customer: `Customer ${number}`,
    email: `customer.${number}@example.org`,
    address: { street: 'Prinsengracht 263', postcode: '1016 GV', city: 'Amsterdam' },
    currency: 'EUR',
    total: 149.95,
    articles: ['drill', 'ladder', 'tent'],
    placedAt: new Date('2026-01-01T12:00:00Z'),
    locked: new Date(0),
    __v: 0,
  };
}

/** The smallest order that can be locked, of 60 bytes: for collections of very many. */
function minimalOrder(number) {
  return { number, locked: new Date(0), __v: 0 };
}

/** What an order of nothing but articles has besides them, and what BSON adds to each article. */
const BYTES_BESIDES = 74;
const BYTES_PER_ARTICLE = 9;
const ARTICLE_BYTES = 100;

/**
 * An order of about so many bytes, by the number of its articles, each a string of about 100. One
 * long string would cost a client hardly more than a short one; a document grows by its parts.
 */
function sizedOrder(number, bytes) {
  const room = bytes - BYTES_BESIDES;
  const count = Math.max(1, Math.round(room / (ARTICLE_BYTES + BYTES_PER_ARTICLE)));
  const article = 'x'.repeat(Math.floor(room / count) - BYTES_PER_ARTICLE);
  return { ...minimalOrder(number), articles: Array(count).fill(article) };
}

module.exports = { ORDER_PATHS, minimalOrder, sizedOrder, storedOrder };
