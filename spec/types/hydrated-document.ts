/*
 * The third way to type `doc.lock`: the type of one document, for functions that take one. Compiled, never run.
 */
import { type HydratedDocument, Schema, model } from 'mongoose';
import lockRelease, { type Lock, LockError, type LockReleaseMethods } from 'mongoose-lock-release';
import { expectSame } from './expect.js';

interface InvoiceFields {
  customer: string;
  locked?: Date;
}
type InvoiceDocument = HydratedDocument<InvoiceFields, LockReleaseMethods>;

export async function bill(invoice: InvoiceDocument): Promise<InvoiceDocument | null> {
  const locked = await invoice.lock(10_000);
  expectSame<typeof locked, InvoiceDocument | null>(true);
  if (!locked) return null;
  expectSame<typeof locked.locked, Date | undefined>(true);
  return locked.release();
}

export async function anyDocument<T extends HydratedDocument<unknown, LockReleaseMethods>>(
  document: T,
): Promise<T | null> {
  return document.lock(10_000);
}

const schema = new Schema<InvoiceFields>({ customer: String });
schema.plugin(lockRelease, { label: 'billing' });
const Invoice = model('Invoice', schema);
export const cast = bill(new Invoice({ customer: 'ada' }) as unknown as InvoiceDocument);
// @ts-expect-error: a document without the methods
export const uncast = bill(new Invoice({ customer: 'ada' }));

export function watch(invoice: InvoiceDocument): void {
  // @ts-expect-error: a document that never locked has none
  invoice.$lock.held;
  const lock = invoice.$lock;
  expectSame<typeof lock, Lock | undefined>(true);
  if (!lock) return;
  expectSame<typeof lock.held, boolean>(true);
  expectSame<typeof lock.remaining, number>(true);
  expectSame<typeof lock.expires, Date>(true);
  expectSame<typeof lock.since, Date>(true);
  expectSame<typeof lock.token, number>(true);
  expectSame<typeof lock.label, string>(true);
  expectSame<ReturnType<typeof lock.assertHeld>, void>(true);
  expectSame<ReturnType<typeof lock.toJSON>['token'], number>(true);
  void Invoice.updateOne(lock.filter, { customer: 'grace' });
  void Invoice.deleteOne({ ...lock.filter });
  // @ts-expect-error: what the lock says cannot be set
  lock.held = true;
  // @ts-expect-error: nor can the lock
  invoice.$lock = undefined;
}

export function explain(error: unknown): string {
  if (!(error instanceof LockError)) return 'not ours';
  expectSame<typeof error.name, 'LockError'>(true);
  // @ts-expect-error: a code that does not exist
  if (error.code === 'ERR_LOCK_BUSY') return 'never';
  switch (error.code) {
    case 'ERR_LOCK_NOT_STORED':
    case 'ERR_LOCK_SUBDOCUMENT':
    case 'ERR_LOCK_UNAVAILABLE':
    case 'ERR_LOCK_LOST':
    case 'ERR_LOCK_IN_TRANSACTION':
    case 'ERR_LOCK_UNSUPPORTED_OPTION':
      return error.message;
  }
}

// @ts-expect-error: only the plugin makes its errors
export const forged = new LockError('ERR_LOCK_LOST');
