// What every script takes from its environment (`k6 run -e NAME=value …`); loadtests/README.md lists them all.

/** The service's client listener. */
export const url = text('URL', 'http://127.0.0.1:8080');

/** The secret its HS256 tokens are signed with. */
export const secret = text('SECRET', '');

/** The scale of the demonstration workspace it serves: small, medium or large. */
export const scale = text('SCALE', 'medium');

/** Clients at once. */
export const users = whole('USERS', 10);

/** How long each scenario lasts, in seconds. */
export const seconds = whole('DURATION_S', 10);

/** The 95th percentile that the time to the first byte of a prepared answer must stay below, in milliseconds. */
export const firstByteMs = whole('FIRST_BYTE_MS', 500);

/** Whether every line of an answer is counted, or only its last one read: for answers of 100 MB and more. */
export const countsLines = text('CHECK', 'lines') === 'lines';

if (secret === '') {
    throw new Error('SECRET is not set: k6 run -e SECRET=… with the HS256 secret of the service');
}

/** A text from the environment. */
export function text(name, fallback) {
    return __ENV[name] || fallback;
}

/** A whole number from the environment. */
export function whole(name, fallback) {
    const value = Number(text(name, String(fallback)));
    if (!Number.isInteger(value) || value < 0) {
        throw new Error(`${name} is a whole number, not ${__ENV[name]}`);
    }
    return value;
}
