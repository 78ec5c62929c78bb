// Figures for people.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });
const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

export const count = (number) => whole.format(number);

/** Large numbers in three digits. */
export const compact = (number) => (number < 10 && number % 1 ? number.toFixed(1) : number < 10_000 ? whole.format(number) : short.format(number));

export function bytes(number) {
    let unit = 0;
    while (number >= 1000 && unit < UNITS.length - 1) {
        number /= 1024;
        unit += 1;
    }
    const digits = unit === 0 || number >= 100 ? 0 : number >= 10 ? 1 : 2;
    return `${number.toFixed(digits)} ${UNITS[unit]}`;
}

export function duration(seconds) {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min`;
    if (s < 172_800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    return `${Math.floor(s / 86_400)} days`;
}

export const ago = (seconds) => (seconds < 2 ? 'just now' : `${duration(seconds)} ago`);

export const ratio = (raw, stored) => (stored > 0 ? `${(raw / stored).toFixed(1)}×` : '–');

export const percent = (part, all) => (all > 0 ? `${Math.round((part / all) * 100)} %` : '–');

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
