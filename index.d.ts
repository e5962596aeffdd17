/*
 * The types of the package, written by hand. They say what index.js exports and what the plugin puts on documents;
 * nothing may stand here that the JavaScript does not do yet. The type tests in spec/types/ hold them to it.
 */
/// <reference lib="esnext.disposable" />
import type { Schema } from 'mongoose';

export = lockReleasePlugin;

/**
 * The plugin: gives every document of a schema `lock`, `release`, `extend` and `withLock`, so that only one process
 * handles it; its model `claim` and `claims`; and its queries `locked()` and `unlocked()`.
 *
 * Adds the paths `locked` (a Date) and `lockedBy` (left out of queries) to the schema. Applying it twice is fine.
 *
 * @param schema - The schema whose documents are to be lockable.
 * @param options - The name of the model to lock through, or the options. Default: the document's own model.
 * @throws TypeError when an option is unknown or of the wrong type; Error when the schema already uses one of the
 * paths for something else.
 *
 * @example
 * ```ts
 * schema.plugin(require('mongoose-lock-release'));
 * schema.plugin(require('mongoose-lock-release'), 'Invoice');
 * schema.plugin(require('mongoose-lock-release'), { label: 'billing-worker-3' });
 * ```
 */
declare function lockReleasePlugin(
  schema: Schema<any, any, any, any, any, any>,
  options?: string | lockReleasePlugin.PluginOptions,
): void;

declare namespace lockReleasePlugin {
  /** What `schema.plugin(lockRelease, options)` takes. */
  interface PluginOptions {
    /** The name of the model to lock through. Default: the document's own model. */
    modelName?: string | undefined;
    /**
     * The name of the path that holds the time until which a document is locked. The path beside it that names the
     * holder is derived from it: `lockedBy` for `locked`, `busyBy` for `busy`. Default `'locked'`.
     */
    path?: string | undefined;
    /** What is stored with a lock to tell a human who holds it. Default: host name and process id, `host:pid`. */
    label?: string | undefined;
    /**
     * Whether `save()` of a document that holds a lock refuses to write once another has taken the lock.
     * Default `true`.
     */
    fence?: boolean | undefined;
    /**
     * How many members must have written a lock before it counts. Anything weaker than the default can be rolled
     * back by a failover, after which two may hold the same lock. Default `{ w: 'majority' }`.
     */
    writeConcern?: WriteConcern | undefined;
    /**
     * How long the end of the process may wait for the release of the locks that are renewed, in milliseconds.
     * Default 1000.
     */
    exitTimeout?: number | undefined;
    /**
     * The longest pause between two looks at what is waited for, in milliseconds, where the server has no change stream
     * for it: on a single server, or without the permission. 10 or more. Default 250.
     */
    pollInterval?: number | undefined;
  }

  /** A write concern, as MongoDB's drivers spell it. */
  interface WriteConcern {
    /** The number of members that must have written, `'majority'`, or the name of a tag set. */
    w?: number | 'majority' | (string & {});
    /** Whether the write must have reached the journal. */
    j?: boolean | undefined;
    /** How long the server waits for the members, in milliseconds; after that the call fails. */
    wtimeoutMS?: number | undefined;
  }

  /** The options of one `lock` or `withLock` call. */
  interface LockOptions {
    /**
     * How long to wait for a document that is locked, in milliseconds; `Infinity` for as long as it takes. A document
     * that is free is locked however short the wait, and 0 tries once. Default 0.
     */
    wait?: number | undefined;
    /**
     * Ends the waiting when it is aborted: the call rejects with the signal's reason, and leaves no lock behind. Once
     * the lock is had it has no effect; to stop the work of `withLock` is what {@link Lock.signal} is for. Default: none.
     */
    signal?: AbortSignal | undefined;
    /**
     * Whether the lock is kept for as long as this process holds it, by a native thread, also while the event loop is
     * blocked. Needs a duration of 100 ms or more. Default `false` for `lock`, `true` for `withLock`.
     */
    renew?: boolean | undefined;
    /** Renewing stops after so many milliseconds. Default `Infinity`. */
    maxHold?: number | undefined;
    /**
     * Renewing stops when the event loop has not turned for so many milliseconds, so that a process that hangs lets
     * go. Default 60000.
     */
    maxStall?: number | undefined;
  }

  /**
   * A Node callback: an error, or the document, or neither when the lock could not be had (or was not held any more).
   * It is called exactly once, and never before the call that it was given to has returned.
   */
  type Callback<TDoc> = (error: Error | null, doc: TDoc | null) => void;

  /**
   * What the plugin adds to documents. TypeScript cannot see that `schema.plugin()` adds methods, so say it once:
   *
   * @example
   * ```ts
   * new Schema({ total: Number }, { methods: {} as LockReleaseMethods });
   * const Invoice: Model<InvoiceFields, {}, LockReleaseMethods> = mongoose.model('Invoice', schema);
   * function bill(invoice: HydratedDocument<InvoiceFields, LockReleaseMethods>) {}
   * ```
   */
  interface LockReleaseMethods {
    /**
     * Locks the stored document for `duration`, if nobody holds it, this very object included; with
     * {@link LockOptions.wait} as soon as nobody does.
     *
     * @param duration - Milliseconds from the server's now, 0 or more; fractions round up.
     * @returns A fresh document that holds the lock; `null` when the document is locked and was not released in time,
     * or was deleted.
     * @throws (rejects) The reason of {@link LockOptions.signal} when that is aborted.
     * @throws (rejects) TypeError or RangeError with the code `ERR_LOCK_ARGUMENT` for a bad argument.
     * @throws (rejects) {@link LockError} `ERR_LOCK_NOT_STORED` when the document was never saved,
     * `ERR_LOCK_SUBDOCUMENT` when it is part of another, `ERR_LOCK_IN_TRANSACTION` when its session is in a
     * transaction, `ERR_LOCK_UNSUPPORTED_OPTION` when the connection uses an option that cannot be carried over.
     * @throws (rejects) The MongoDB driver's own classes for what the server or the network says.
     */
    lock<TDoc>(this: TDoc, duration: number, options?: LockOptions | null): Promise<TDoc | null>;
    /** Locks the document and tells the callback; returns nothing. */
    lock<TDoc>(this: TDoc, duration: number, callback: Callback<TDoc>): void;
    /** Locks the document with options and tells the callback; returns nothing. */
    lock<TDoc>(
      this: TDoc,
      duration: number,
      options: LockOptions | null | undefined,
      callback: Callback<TDoc>,
    ): void;

    /**
     * Releases the lock: at once, another may take it.
     *
     * An object that has once held a lock, or was refused one, frees its own lock only. One that never called `lock`
     * frees the document whoever holds it.
     *
     * @returns The fresh document, with `locked` at the server's now; `null` when the lock was not held any more, in
     * which case nothing was changed.
     * @throws (rejects) As `lock` does.
     */
    release<TDoc>(this: TDoc): Promise<TDoc | null>;
    /** Releases the lock and tells the callback; returns nothing. */
    release<TDoc>(this: TDoc, callback: Callback<TDoc>): void;

    /**
     * Keeps a held lock for at least `duration` from now; never shortens it, and never revives one that has lapsed.
     *
     * @param duration - Milliseconds from the server's now, 0 or more; fractions round up.
     * @returns The fresh document; `null` when the lock was not held any more.
     * @throws (rejects) As `lock` does.
     */
    extend<TDoc>(this: TDoc, duration: number): Promise<TDoc | null>;
    /** Extends the lock and tells the callback; returns nothing. */
    extend<TDoc>(this: TDoc, duration: number, callback: Callback<TDoc>): void;

    /**
     * Locks the document, runs `fn`, and releases once `fn` has settled. The lock is renewed meanwhile, unless
     * `options.renew` is `false`.
     *
     * @param duration - Milliseconds from the server's now, 100 or more when the lock is renewed; fractions round up.
     * @param fn - The work; gets the fresh, locked document and its lock.
     * @returns What `fn` returned.
     * @throws (rejects) {@link LockError} `ERR_LOCK_UNAVAILABLE` when the document is locked by another or was deleted;
     * `fn` is not called then.
     * @throws (rejects) What `fn` throws, or as `lock` does.
     */
    withLock<TDoc, TResult>(
      this: TDoc,
      duration: number,
      fn: (locked: TDoc, lock: Lock) => TResult | PromiseLike<TResult>,
    ): Promise<TResult>;
    /** The same with options. */
    withLock<TDoc, TResult>(
      this: TDoc,
      duration: number,
      options: LockOptions | null | undefined,
      fn: (locked: TDoc, lock: Lock) => TResult | PromiseLike<TResult>,
    ): Promise<TResult>;

    /** The lock that this document holds or held last; undefined when it never held one. */
    readonly $lock: Lock | undefined;

    /** Releases the lock that the document holds, at the end of the block of an `await using`. */
    [Symbol.asyncDispose](): Promise<void>;
  }

  /** The options of one `claim` call: those of `lock`, and which documents and how many. */
  interface ClaimOptions extends LockOptions {
    /** The most documents that are claimed, from 1 to 1000. Default 1. */
    limit?: number | undefined;
    /**
     * The order in which they are claimed, as a query's `sort()` takes it. Default: as the server finds them.
     * Claimers that meet choose from a few times as many as they need, so that no order among them is promised.
     */
    sort?: ClaimOrder | undefined;
    /**
     * Milliseconds to wait for the first of them while there are none. 0 looks once; `Infinity` is allowed.
     * Default 0.
     */
    wait?: number | undefined;
    /** Ends the claim: it rejects with the signal's reason, and what it has locked is released. */
    signal?: AbortSignal | undefined;
  }

  /** The options of one `claims` call. */
  interface ClaimsOptions {
    /** The most documents that are locked at once, handled or waiting for their turn, from 1 to 1000. Default 1. */
    concurrency?: number | undefined;
    /** The order in which they are claimed, as for {@link ClaimOptions.sort}. */
    sort?: ClaimOrder | undefined;
    /** Ends the claims: what is being handled is finished, nothing more is claimed, and no loop throws. */
    signal?: AbortSignal | undefined;
    /** As for {@link LockOptions.renew}. Default `true`. */
    renew?: boolean | undefined;
    /** As for {@link LockOptions.maxHold}. Default `Infinity`. */
    maxHold?: number | undefined;
    /** As for {@link LockOptions.maxStall}. Default 60000. */
    maxStall?: number | undefined;
  }

  /** An order, in any form that a query's `sort()` takes. */
  type ClaimOrder =
    | string
    | { [path: string]: ClaimDirection | { $meta: any } }
    | [string, ClaimDirection][]
    | Map<string, ClaimDirection>;

  /** Upwards or downwards. */
  type ClaimDirection = 1 | -1 | 'asc' | 'ascending' | 'desc' | 'descending';

  /**
   * Claimed documents without end. Each is locked until the loop goes on to the next one or ends; several loops may
   * share them. Ends with its signal, or when the last of its loops is left.
   */
  interface Claims<TDoc> extends AsyncIterable<TDoc> {
    /** One loop over the documents. */
    [Symbol.asyncIterator](): AsyncIterableIterator<TDoc>;
    /**
     * Handles `concurrency` documents at once, until the signal ends it or `fn` throws.
     *
     * @param fn - The work; gets the locked document and its lock, which is released once the work has settled.
     * @throws (rejects) What `fn` throws first, when the others that run have been finished; or as `claim` does.
     */
    forEach(fn: (doc: TDoc, lock: Lock) => unknown): Promise<void>;
  }

  /** A document that was claimed: it has the plugin's methods, and a lock of its own. */
  type Claimed<TDoc> = TDoc & { readonly $lock: Lock };

  /** A model, as far as it tells the type of its documents. */
  interface ClaimableModel<TDoc> {
    /** Makes a document of what is stored. */
    hydrate(obj: any): TDoc;
  }

  /**
   * What the plugin adds to models. TypeScript cannot see that `schema.plugin()` adds statics, so say it once; names
   * that the schema has already are left as they are.
   *
   * @example
   * ```ts
   * new Schema({ total: Number }, { methods: {} as LockReleaseMethods, statics: {} as LockReleaseStatics });
   * type InvoiceModel = Model<InvoiceFields, {}, LockReleaseMethods> & LockReleaseStatics;
   * ```
   */
  interface LockReleaseStatics {
    /**
     * Locks up to `limit` documents of a query that nobody holds, each with a lock of its own.
     *
     * @param filter - Which documents, as for `find()`: cast by the schema, and by the discriminator if it is one.
     * @param duration - Milliseconds from the server's now, 0 or more; fractions round up.
     * @returns The documents, in the order of `sort`; none when none could be had.
     * @throws (rejects) TypeError or RangeError with the code `ERR_LOCK_ARGUMENT` for a bad argument, Mongoose's
     * CastError for a filter that cannot be cast.
     * @throws (rejects) The reason of `options.signal`, once that is aborted.
     * @throws (rejects) The MongoDB driver's own classes for what the server or the network says.
     */
    claim<TDoc>(
      this: ClaimableModel<TDoc>,
      filter: ClaimFilter,
      duration: number,
      options?: ClaimOptions | null,
    ): Promise<Claimed<TDoc>[]>;

    /**
     * Claims documents of a query for as long as anybody handles them, and waits for new ones when there are none.
     *
     * @param filter - Which documents; as for `claim`.
     * @param duration - Milliseconds from the server's now, 100 or more when the locks are renewed.
     * @throws TypeError or RangeError with the code `ERR_LOCK_ARGUMENT` for a bad argument, at once; everything else is
     * thrown in the loops.
     *
     * @example
     * ```ts
     * for await (const order of Order.claims({ state: 'new' }, 30_000, { signal })) {
     *   await bill(order);
     * }
     * await Order.claims({ state: 'new' }, 30_000, { concurrency: 10, signal }).forEach(bill);
     * ```
     */
    claims<TDoc>(
      this: ClaimableModel<TDoc>,
      filter: ClaimFilter,
      duration: number,
      options?: ClaimsOptions | null,
    ): Claims<Claimed<TDoc>>;
  }

  /** Which documents are claimed: any condition that `find()` takes. */
  type ClaimFilter = { [path: string]: any };

  /**
   * What the plugin adds to queries. Judged by the server's clock. (A `distinct()` cannot have it: the server does not
   * know `$$NOW` there.)
   *
   * @example
   * ```ts
   * new Schema({ total: Number }, { query: {} as LockReleaseQueryHelpers });
   * const Invoice: Model<InvoiceFields, LockReleaseQueryHelpers> = mongoose.model('Invoice', schema);
   * ```
   */
  interface LockReleaseQueryHelpers {
    /** Narrows the query to the documents that somebody has locked. */
    locked<TQuery>(this: TQuery): TQuery;
    /** Narrows the query to the documents that can be locked. */
    unlocked<TQuery>(this: TQuery): TQuery;
  }

  /**
   * The aggregation expression for a document that is locked, by the server's clock: for `$expr`, `$match`, `$cond`.
   *
   * @param path - The plugin's option `path`. Default `'locked'`.
   */
  function locked(path?: string): { $gt: [string, '$$NOW'] };
  /**
   * The aggregation expression for a document that can be locked, by the server's clock.
   *
   * @param path - The plugin's option `path`. Default `'locked'`.
   */
  function unlocked(path?: string): { $lte: [string, '$$NOW'] };

  /** One acquisition of a document's lock, as its holder sees it. */
  interface Lock {
    /**
     * Whether the lock is surely still held. Judged at the moment it is read, without asking the server, and always
     * false before the server would let another in.
     */
    readonly held: boolean;
    /** Milliseconds for which the lock is surely still held; 0 when it is not. */
    readonly remaining: number;
    /** When the lock lapses, by the server's clock. */
    readonly expires: Date;
    /** When the lock was acquired, by the server's clock. */
    readonly since: Date;
    /** A number that grows with every acquisition of this document: what a fenced resource compares. */
    readonly token: number;
    /** Who holds the lock, for humans; see {@link PluginOptions.label}. */
    readonly label: string;
    /** Aborted, with a {@link LockError} `ERR_LOCK_LOST` as its reason, when the lock is lost; not by a release. */
    readonly signal: AbortSignal;
    /**
     * A filter that matches the document only as long as nobody else has taken the lock, for updates that do not go
     * through `save()`. Another call gives another object.
     */
    readonly filter: LockFilter;
    /**
     * Does nothing while the lock is held.
     *
     * @throws {@link LockError} `ERR_LOCK_LOST` when it is not.
     */
    assertHeld(): void;
    /** What the lock says at this moment, as plain values for a log. */
    toJSON(): Pick<Lock, 'held' | 'remaining' | 'expires' | 'since' | 'token' | 'label'>;
  }

  /** The filter of {@link Lock.filter}: the document's `_id` and the condition that the lock is still this one. */
  interface LockFilter {
    /** The document's own `_id`. */
    _id: any;
    /** The condition on the stored lock. */
    [path: string]: any;
  }

  /**
   * Why a {@link LockError} was made.
   *
   * - `ERR_LOCK_NOT_STORED`: the document was never saved, or was loaded without its `_id`.
   * - `ERR_LOCK_SUBDOCUMENT`: a subdocument has no lock of its own; lock its top-level document.
   * - `ERR_LOCK_UNAVAILABLE`: `withLock` did not get the lock.
   * - `ERR_LOCK_LOST`: the lock lapsed or was taken by another; nothing was written.
   * - `ERR_LOCK_IN_TRANSACTION`: the document's session is in a transaction; lock outside of it.
   * - `ERR_LOCK_UNSUPPORTED_OPTION`: the connection uses an option that cannot be carried over; the message names it.
   */
  type LockErrorCode =
    | 'ERR_LOCK_NOT_STORED'
    | 'ERR_LOCK_SUBDOCUMENT'
    | 'ERR_LOCK_UNAVAILABLE'
    | 'ERR_LOCK_LOST'
    | 'ERR_LOCK_IN_TRANSACTION'
    | 'ERR_LOCK_UNSUPPORTED_OPTION';

  /**
   * An error of the plugin's own. "Already locked" is none: that is `null`. A bad argument is a TypeError or RangeError
   * with the code `ERR_LOCK_ARGUMENT`, and what the server says is an error of the MongoDB driver.
   */
  class LockError extends Error {
    private constructor();
    /** Always `'LockError'`. */
    readonly name: 'LockError';
    /** Why the error was made. */
    readonly code: LockErrorCode;
  }
}
