/*
 * The second way to type `doc.lock`: fields as an interface, and the methods as an argument of `Model`. Compiled,
 * never run.
 */
import { type Model, Schema, model } from 'mongoose';
import lockRelease, { type LockReleaseMethods } from 'mongoose-lock-release';
import { expectSame } from './expect.js';

interface InvoiceFields {
  customer: string;
  total?: number;
}
interface InvoiceMethods extends LockReleaseMethods {
  describe(): string;
}
type InvoiceModel = Model<InvoiceFields, {}, InvoiceMethods>;

const schema = new Schema<InvoiceFields, InvoiceModel, InvoiceMethods>({
  customer: { type: String, required: true },
  total: Number,
});
schema.plugin(lockRelease, 'Invoice');
schema.method('describe', function describe() {
  expectSame<typeof this.$lock, lockRelease.Lock | undefined>(true);
  return `${this.customer}: ${this.total}`;
});
const Invoice = model<InvoiceFields, InvoiceModel>('Invoice', schema);

export async function bill(): Promise<void> {
  const invoice = await Invoice.findOne({ total: { $gt: 100 } }).orFail();
  const locked = await invoice.lock(10_000);
  expectSame<typeof locked, typeof invoice | null>(true);
  if (!locked) return;
  expectSame<typeof locked.total, number | undefined>(true);
  expectSame<ReturnType<typeof locked.describe>, string>(true);
  expectSame<NonNullable<Awaited<ReturnType<typeof locked.save>>>['customer'], string>(true);
  const released = await locked.release();
  expectSame<typeof released, typeof invoice | null>(true);
  // @ts-expect-error: no such method
  await locked.unlock();
}

const plain = model('Plain', new Schema<InvoiceFields>({ customer: String }));
export async function withoutTheMethods(): Promise<void> {
  // @ts-expect-error: applying the plugin alone cannot be seen by the types
  await new plain().lock(10_000);
}
