(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var views = {};

  // data come as columns, which are much smaller than rows
  function rowsOf(columns) {
    var names = Object.keys(columns), length = names.length ? columns[names[0]].length : 0, rows = [];
    for (var i = 0; i < length; i++) {
      var row = {};
      for (var name of names) row[name] = columns[name][i];
      rows.push(row);
    }
    return rows;
  }

  function config() {
    var text = dark.matches ? "#ececf0" : "#1c1c1e", line = dark.matches ? "#55555e" : "#d5d5da";
    var font = "system-ui, 'DejaVu Sans', sans-serif";
    return { background: "transparent", font: font, view: { stroke: line },
      axis: { labelColor: text, titleColor: text, domainColor: line, tickColor: line, gridColor: line, gridOpacity: .5,
        labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" },
      legend: { labelColor: text, titleColor: text, titleFontWeight: "normal" }, header: { labelColor: text, titleColor: text },
      text: { color: "#000000" } };
  }

  function choose(figure, view, example) {
    var picker = figure.picker, rows = rowsOf(figure.data[picker.data]);
    for (var i = 0; i < rows.length; i++) rows[i][picker.column] = picker.values[example][i];
    return view.data(picker.data, rows).runAsync();
  }

  function drawOne(element) {
    var number = element.dataset.figure, figure = figures[number];
    var spec = Object.assign({}, figure.chart, { datasets: {} });
    for (var name of Object.keys(figure.data)) spec.datasets[name] = rowsOf(figure.data[name]);
    return window.vegaEmbed(element, spec, { actions: false, renderer: figure.canvas ? "canvas" : "svg", ast: true,
      config: config() }).then(function (result) {
      views[number] = result.view;
      var select = document.querySelector('select[data-figure="' + number + '"]');
      if (select) return choose(figure, result.view, select.value);
    });
  }

  // what is on the screen first; the others one by one, so that the page can be read meanwhile
  async function draw() {
    var charts = Array.from(document.querySelectorAll(".chart"));
    var onScreen = function (chart) { return chart.getBoundingClientRect().top < window.innerHeight; };
    var first = charts.filter(onScreen);
    await Promise.all(first.map(drawOne));
    document.body.dataset.opened = "yes";
    for (var chart of charts) {
      if (first.includes(chart)) continue;
      await new Promise(function (next) { setTimeout(next); });
      await drawOne(chart);
    }
    document.body.dataset.drawn = "yes";
  }

  document.querySelectorAll("select[data-figure]").forEach(function (select) {
    select.addEventListener("change", function () {
      // all maps of a section are of one example
      select.closest("section").querySelectorAll("select").forEach(function (other) {
        other.value = select.value;
        if (views[other.dataset.figure]) choose(figures[other.dataset.figure], views[other.dataset.figure], select.value);
      });
    });
  });

  document.querySelectorAll("th button").forEach(function (button) {
    button.addEventListener("click", function () {
      var heading = button.parentElement, table = heading.closest("table"), body = table.tBodies[0];
      var column = heading.cellIndex, down = heading.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      var sign = down ? -1 : 1;
      Array.from(body.rows).map(function (row) {
        var cell = row.cells[column];
        return { row: row, text: cell.textContent, value: cell.dataset.value === undefined ? null : Number(cell.dataset.value) };
      }).sort(function (a, b) {
        if (a.value !== null && b.value !== null) return sign * (a.value - b.value);
        if (a.value !== null || b.value !== null) return a.value === null ? 1 : -1;  // what has no number comes last
        return sign * a.text.localeCompare(b.text, "en", { numeric: true });
      }).forEach(function (each) { body.appendChild(each.row); });
    });
  });

  dark.addEventListener("change", draw);
  draw();
})();
