// What a click and a change of colours do. All text from records goes in by textContent.
"use strict";
(() => {
  const studies = JSON.parse(document.getElementById("data").textContent);
  const dialog = document.getElementById("behind");

  // make("td", {class: "number"}, "1.0", node, ...): an element; strings become text, never markup
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // --- what is behind a cell -------------------------------------------------------------

  const facts = (pairs) =>
    make("dl", {class: "facts"}, ...pairs.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))));

  function table(name, head, rows, numbers = []) {
    const kind = (column) => (numbers.includes(column) ? {class: "number"} : {});
    return make("div", {class: "scroll", role: "region", tabindex: "0", "aria-label": name},
      make("table", {class: name === "runs" ? "plain runs" : "plain"},
        make("thead", {}, make("tr", {}, ...head.map((text, column) => make("th", {scope: "col", ...kind(column)}, text)))),
        make("tbody", {}, ...rows.map((row) =>
          make("tr", {}, ...row.map((text, column) => make("td", kind(column), text)))))));
  }

  const code = (text) => make("code", {}, text);
  const folded = (title, ...children) => make("details", {}, make("summary", {}, title), ...children);

  function recipeOf(cell, study) {
    const recipe = study.recipes[cell.recipe];
    const whole = folded(`The whole recipe (${recipe.name})`,
      table("the whole recipe", ["field", "value"], recipe.fields.map(([name, text]) => [code(name), text])));
    if (cell.baseline === null)
      return [make("h3", {}, "Recipe"), make("p", {class: "note"}, cell.no_baseline), whole];
    if (cell.changes.length === 0)
      return [make("h3", {}, "Recipe"), make("p", {class: "note"}, `The same recipe as ${cell.baseline}.`), whole];
    return [make("h3", {}, `Recipe, against ${cell.baseline}`),
      table("recipe against its baseline", ["field", "baseline", "here"],
        cell.changes.map(([name, before, after]) => [code(name), before, after])), whole];
  }

  function runsOf(cell, study) {
    const shown = [make("h3", {}, cell.runs.length === 1 ? "The run" : `The ${cell.runs.length} runs`)];
    const runs = cell.runs.map(([name, value]) => ({name, value, ...study.runs[name]}));
    if (runs.length > 0)
      shown.push(table("runs", ["seed", "this number", "last top-1", "best top-1", "begun", "took", "samples seen", "run"],
        runs.map((run) => [String(run.seed), run.value, run.top1, run.best, run.started, run.took, run.samples, code(run.name)]), [0, 1, 2, 3, 6]));
    else shown[0].textContent = "No run";
    if (cell.missing.length > 0)
      shown.push(make("ul", {class: "missing"}, ...cell.missing.map(([seed, name, why]) => make("li", {}, `${seed}: ${why} `, code(name)))));
    for (const place of new Set(runs.map((run) => run.place))) {
      const here = runs.filter((run) => run.place === place).map((run) => run.seed);
      shown.push(make("h3", {}, here.length === runs.length ? "Made with" : `Made with (seed ${here.join(", ")})`), facts(study.places[place]));
    }
    const weights = runs.flatMap((run) => run.weights.map(([name, digest]) => [String(run.seed), name, code(digest)]));
    if (weights.length > 0) shown.push(folded("Weights, sha256", table("weights", ["seed", "file", "sha256"], weights)));
    return shown;
  }

  function open(button) {
    const study = studies[button.closest("[data-study]").dataset.study];
    const cell = study.cells[button.dataset.cell];
    document.getElementById("behind-place").textContent = cell.place;
    document.getElementById("behind-title").textContent = cell.title;
    document.getElementById("behind-body").replaceChildren(facts(cell.facts), ...recipeOf(cell, study), ...runsOf(cell, study));
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.cell");
    if (button) open(button);
    else if (event.target === dialog) dialog.close(); // outside of it
  });

  // --- charts ----------------------------------------------------------------------------

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const LINES = ["c1", "c2", "c3", "c4", "c5", "c6", "c7"]; // Okabe and Ito's, see report.css
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const drawn = []; // functions that draw, to be called again when the colours change

  function layout(more) {
    const axis = {gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true, fixedrange: touch};
    const given = (name) => ({...axis, ...more[name]});
    return {
      paper_bgcolor: colour("card"), plot_bgcolor: colour("card"), // not transparent: lines on hover are drawn to stand out of it
      font: {family: "system-ui, sans-serif", size: 13, color: colour("ink")},
      margin: {l: 44, r: 22, t: 24, b: 40}, hovermode: "x unified", hoversubplots: "axis", dragmode: touch ? false : "zoom",
      hoverlabel: {bgcolor: colour("card"), bordercolor: colour("line"), font: {color: colour("ink"), size: 12}},
      legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: {size: 12}},
      ...more, xaxis: {...given("xaxis"), showspikes: true, spikecolor: colour("faint"), spikethickness: 1}, yaxis: given("yaxis"), ...(more.yaxis2 ? {yaxis2: given("yaxis2")} : {}),
    };
  }

  function draw(place, figure) {
    const once = () => {
      const {traces, more} = figure();
      Plotly.react(place, traces, layout(more), {displayModeBar: false, responsive: true});
    };
    drawn.push(once);
    once();
    return once;
  }

  function curves(one, beside) {
    const name = beside === null ? "" : `, ${one.label}`;
    const traces = [];
    for (const [share, dash, dashBeside] of [["easy", "solid", "dot"], ["hard", "dash", "dashdot"]]) {
      const fit = one[`${share}_fit`];
      traces.push({x: one.epoch, y: one[share], name: share + name, mode: "markers", marker: {size: 4, opacity: 0.6, color: colour(share)},
        showlegend: !fit, hovertemplate: "%{y:.1f} %"});
      if (fit)
        traces.push({x: one.epoch, y: fit, name: share + name, mode: "lines", hoverinfo: "skip", line: {color: colour(share), width: 2.5, dash}});
      if (beside)
        traces.push({x: beside.epoch, y: beside[`${share}_fit`] || beside[share], name: `${share}, ${beside.label}`, mode: "lines",
          line: {color: colour(share), width: 1.8, dash: dashBeside}, hovertemplate: "%{y:.1f} %"});
    }
    for (const [curve, text, style] of [[one, name, {width: 2.5}], [beside, beside && `, ${beside.label}`, {width: 1.8, dash: "dot"}]])
      if (curve && curve.rate)
        traces.push({x: curve.epoch, y: curve.rate, name: `rate${text}`, mode: "lines", yaxis: "y2", line: {color: colour("rate"), ...style},
          hovertemplate: "%{y:.2f} % an epoch"});
    return traces;
  }

  function shade(one) {
    if (one.periods === null) return {shapes: [], annotations: []};
    const [begin, end] = one.periods.map((border) => border * one.epochs);
    const label = (text, from, to) => ({text, x: (from + to) / 2, y: 1, xref: "x", yref: "paper", yanchor: "bottom", showarrow: false,
      font: {size: 11, color: colour("faint")}});
    const line = (x) => ({type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", layer: "below", line: {color: colour("faint"), width: 1, dash: "dot"}});
    return {
      shapes: [{type: "rect", x0: begin, x1: end, y0: 0, y1: 1, yref: "paper", layer: "below", line: {width: 0}, fillcolor: colour("shade")}, line(begin), line(end)],
      annotations: [label("T1", 0, begin), label("T2", begin, end), label("T3", end, one.epochs)],
    };
  }

  function inWords(one) {
    const seeds = `${one.label}: ${one.epochs} epochs, ${one.seeds} seed${one.seeds === 1 ? "" : "s"}. `;
    if (one.periods === null) return `${seeds}No periods: ${one.reason}`;
    const [begin, end] = one.periods.map((border) => `${(border * one.epochs).toFixed(1)} (${(100 * border).toFixed(1)} % of training)`);
    return `${seeds}Formation (T1) ends at epoch ${begin}, exploration (T3) begins at ${end}.`;
  }

  function choice(select, found, first) {
    const groups = new Map();
    if (first) select.append(make("option", {value: ""}, first));
    found.forEach((one, number) => {
      if (!groups.has(one.table)) groups.set(one.table, select.appendChild(make("optgroup", {label: one.table})));
      groups.get(one.table).append(make("option", {value: String(number)}, one.label));
    });
  }

  function evolution(section, found) {
    const place = section.querySelector("[data-chart=evolution]");
    if (!place) return;
    const [first, second] = ["first", "second"].map((name) => section.querySelector(`[data-choose=${name}]`));
    choice(first, found);
    choice(second, found, "nothing");
    const chosen = () => [found[first.value], second.value === "" ? null : found[second.value]];
    const again = draw(place, () => {
      const [one, beside] = chosen();
      section.querySelector("[data-says]").textContent = [one, beside].filter(Boolean).map(inWords).join(" ");
      const epochs = Math.max(one.epochs, beside ? beside.epochs : 0);
      return {traces: curves(one, beside), more: {
        ...shade(one),
        xaxis: {title: {text: "epoch", standoff: 4}, range: [0, epochs], anchor: "y2", unifiedhovertitle: {text: "epoch %{x}"}},
        yaxis: {title: {text: "samples, %"}, domain: [0.4, 1], rangemode: "tozero"},
        yaxis2: {title: {text: "rate, % an epoch"}, domain: [0, 0.32], rangemode: "tozero"},
      }};
    });
    first.addEventListener("change", again);
    second.addEventListener("change", again);
  }

  function alpha(section, schedules) {
    for (const [name, lines] of Object.entries(schedules)) {
      const place = section.querySelector(`[data-chart=${name}]`);
      if (!place) continue;
      const alphas = [...new Set(lines.flatMap((line) => line.y))];
      draw(place, () => ({
        traces: lines.map((line, number) => ({
          x: line.x, y: line.y, name: line.label, mode: "lines", hovertemplate: "%{y:.3g}",
          line: {color: colour(LINES[number % LINES.length]), width: 2, dash: DASHES[number % DASHES.length]},
        })),
        more: {
          showlegend: true,
          xaxis: {range: [0, 100], unifiedhovertitle: {text: "%{x:.1f} % of training"}, tickvals: [0, 25, 50, 75, 100], ticktext: ["0", "25", "50", "75", "100 %"]},
          // alpha 8 beside 0.05: only a logarithm shows both
          yaxis: Math.max(...alphas) > 2 ? {title: {text: "alpha"}, type: "log", tickvals: alphas} : {title: {text: "alpha"}, range: [0, 1]},
        },
      }));
    }
  }

  document.querySelectorAll("section.study").forEach((section) => {
    const study = studies[section.dataset.study];
    evolution(section, study.curves);
    alpha(section, study.schedules);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((again) => again()));
})();
