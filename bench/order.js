/**
 * The document that every contender locks: an order of about 300 bytes of BSON. Owns its shape, so
 * that all of them lock the same thing. Must not require a Mongoose: each contender brings its own.
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

module.exports = { ORDER_PATHS, storedOrder };
