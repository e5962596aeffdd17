/*
 * Owns the errors that users see: our own, and those of their driver's classes, made from what the native side
 * reports. It decides nothing about when an error occurs.
 */
'use strict';

/** An error of this library's own; `code` is stable, the message is for people. */
class LockError extends Error {
  constructor(code, message, options) {
    super(message, options);
    this.code = code;
  }

  get name() {
    return 'LockError';
  }
}

/** A TypeError or RangeError about what a user gave. */
function argumentError(Type, message) {
  return Object.assign(new Type(message), { code: 'ERR_LOCK_ARGUMENT' });
}

function withReport(error, { code, codeName, labels = [] }) {
  if (code !== undefined) error.code = code;
  if (codeName) error.codeName = codeName;
  for (const label of labels) error.addErrorLabel(label);
  return error;
}

function serverError(mongo, { message, code, codeName, labels }) {
  return new mongo.MongoServerError({ message, code, codeName, errorLabels: labels });
}

function writeConcernError(mongo, report) {
  const { message: errmsg, code, codeName, labels } = report;
  const details = { code, codeName, errmsg };
  // The class took (error, result) up to version 5 of the driver, and takes the server's reply since.
  const error =
    mongo.MongoWriteConcernError.length === 2
      ? new mongo.MongoWriteConcernError({ ...details, message: errmsg })
      : new mongo.MongoWriteConcernError({ ok: 1, writeConcernError: details });
  error.message = errmsg;
  return withReport(error, { code, codeName, labels });
}

// The classes that the Node driver throws in each of these cases.
const MAKERS = {
  server: serverError,
  writeConcern: writeConcernError,
  authentication: (mongo, report) =>
    serverError(mongo, { ...report, code: 18, codeName: 'AuthenticationFailed' }),
  network: (mongo, report) => withReport(new mongo.MongoNetworkError(report.message, {}), report),
  networkTimeout: (mongo, report) =>
    withReport(new mongo.MongoNetworkTimeoutError(report.message, {}), report),
  serverSelection: (mongo, report) =>
    withReport(new mongo.MongoServerSelectionError(report.message, { servers: new Map() }), report),
  closed: (mongo, report) => new mongo.MongoTopologyClosedError(report.message),
  configuration: (mongo, report) => new mongo.MongoInvalidArgumentError(report.message),
  incompatible: (mongo, report) => new mongo.MongoCompatibilityError(report.message),
  unsupportedOption: (mongo, report) => unsupportedOption(report.option),
  runtime: (mongo, report) => new mongo.MongoRuntimeError(report.message),
};

/** The error that a native report stands for; `mongo` is the driver that the user's Mongoose uses. */
function fromReport(report, mongo) {
  return (MAKERS[report.kind] ?? MAKERS.runtime)(mongo, report);
}

function unsupportedOption(name) {
  return new LockError(
    'ERR_LOCK_UNSUPPORTED_OPTION',
    `the connection option ${name} cannot be carried over to the native client that locks documents`,
  );
}

/** Lets the error's stack name the caller of `trace`, which was captured when the call began. */
function withStack(error, trace) {
  const frames = trace.stack.slice(trace.stack.indexOf('\n'));
  Object.defineProperty(error, 'stack', {
    value: `${error.name}: ${error.message}${frames}`,
    configurable: true,
    writable: true,
  });
  return error;
}

module.exports = { LockError, argumentError, fromReport, unsupportedOption, withStack };
