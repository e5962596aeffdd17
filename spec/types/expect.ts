/*
 * Compares types exactly, for the type tests beside it. Compiled, never run.
 */

/** `true` when both types are the same in every detail, `false` otherwise (`any` is the same only as `any`). */
export type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** Compiles with the argument `true` only if both types are the same. */
export declare function expectSame<A, B>(same: Same<A, B>): void;
