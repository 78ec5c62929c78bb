// A chart of one or two figures over the last minutes: for the eye as lines, for the pointer and the arrow keys as a readout,
// for screen readers as a sentence.

const WIDTH = 300;
const HEIGHT = 100;
const POINTS = 300;

/** The next round number, so that the scale does not jump with every point. */
function ceiling(value, base) {
    if (value <= 0) return 1;
    let step = 1;
    while (step * base <= value) step *= base;
    return [1, 2, 4, 5, 8, 10, 16, 32, 64, 128, 256, 512, 1024].map((factor) => factor * step).find((top) => top >= value) ?? value;
}

export class Chart {
    /** `series`: one or two of { name, of(point) → figure a point }; `value`: what stands large; `show`: a figure as text. */
    constructor({ title, series, value, show, base = 10 }) {
        Object.assign(this, { series, value, show, base, title });
        const figure = document.getElementById('chart-template').content.firstElementChild.cloneNode(true);
        const part = (name) => figure.querySelector(name);
        this.figure = figure;
        this.parts = { value: part('.value'), summary: part('.summary'), top: part('.top-label'), area: part('.area'), cursor: part('.cursor'), svg: part('svg') };
        this.strokes = [part('.stroke.one'), part('.stroke.two')];
        part('.title').textContent = title;
        series.forEach(({ name }, index) => {
            const key = document.createElement('span');
            key.className = index ? 'two' : 'one';
            key.textContent = name;
            part('.legend').append(key);
        });
        figure.setAttribute('role', 'group');
        figure.setAttribute('aria-label', title);
        this.points = [];
        this.at = null;
        const plot = part('.plot');
        plot.addEventListener('pointermove', (event) => {
            const { left, width } = plot.getBoundingClientRect();
            this.read(Math.round(((event.clientX - left) / width) * (POINTS - 1)));
        });
        plot.addEventListener('pointerleave', () => this.read(null));
        figure.addEventListener('blur', () => this.read(null));
        figure.addEventListener('keydown', (event) => {
            const last = POINTS - 1;
            const to = { ArrowLeft: (this.at ?? last + 1) - 1, ArrowRight: (this.at ?? last) + 1, Home: POINTS - this.points.length, End: last, Escape: null }[event.key];
            if (to === undefined) return;
            event.preventDefault();
            this.read(to);
            this.parts.summary.setAttribute('aria-live', 'polite');
            this.parts.summary.textContent = this.parts.value.textContent;
        });
    }

    draw(points, seconds) {
        this.points = points;
        this.seconds = seconds;
        const lines = this.series.map(({ of }) => points.map((point) => of(point) / seconds));
        const most = Math.max(0, ...lines.flat());
        const top = ceiling(most, this.base);
        const x = (index) => ((POINTS - points.length + index) / (POINTS - 1)) * WIDTH;
        const y = (figure) => HEIGHT - (figure / top) * (HEIGHT - 2) - 0.5;
        lines.forEach((line, index) => {
            const path = line.map((figure, at) => `${at ? 'L' : 'M'}${x(at).toFixed(1)} ${y(figure).toFixed(1)}`).join('');
            this.strokes[index].setAttribute('d', path);
            if (index === 0) this.parts.area.setAttribute('d', path && `${path}L${WIDTH} ${HEIGHT}L${x(0).toFixed(1)} ${HEIGHT}Z`);
        });
        this.parts.top.textContent = this.show(top);
        this.read(this.at);
        if (!this.figure.matches(':focus-within')) {
            this.parts.summary.removeAttribute('aria-live');
            this.parts.summary.textContent = `${this.title}: ${this.value(points, seconds)} now, at most ${this.show(most)} in the last ten minutes. Use the arrow keys to read points.`;
        }
    }

    /** Shows the figures at one point, or what holds now. */
    read(at) {
        const first = POINTS - this.points.length;
        if (at !== null) at = Math.min(POINTS - 1, Math.max(first, at));
        this.at = this.points.length ? at : null;
        const point = this.at === null ? null : this.points[this.at - first];
        if (!point) {
            this.parts.cursor.removeAttribute('d');
            this.parts.value.textContent = this.points.length ? this.value(this.points, this.seconds) : '–';
            return;
        }
        const x = (this.at / (POINTS - 1)) * WIDTH;
        this.parts.cursor.setAttribute('d', `M${x} 0V${HEIGHT}`);
        const back = (POINTS - 1 - this.at) * this.seconds;
        const time = back < 1 ? 'now' : `${Math.floor(back / 60)}:${String(Math.round(back % 60)).padStart(2, '0')} ago`;
        this.parts.value.textContent = `${this.series.map(({ of }) => this.show(of(point) / this.seconds)).join(' / ')} · ${time}`;
    }
}
