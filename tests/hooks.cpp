// What the tests look inside the library by, over numpy arrays: parts that no operator shows alone.
// No wheel has it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "likelihoods.h"
#include "tiling.h"

namespace py = pybind11;
namespace formulas = fastvae::formulas;
namespace likelihoods = fastvae::likelihoods;
namespace math = fastvae::math;

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// One function of simd_math.h by name, on the instruction set in use.
Floats evaluate(const std::string& function, const Floats& x) {
  Floats out(x.size());
  if (!fastvae::cpu::kernels().evaluate(function.c_str(), x.data(), out.mutable_data(), x.size()))
    throw py::value_error("no elementary function named " + function);
  return out;
}

// The raw words of blocks first, first + 1, ... of a stream, four a block.
py::array_t<uint32_t> words(uint64_t seed, uint64_t offset, uint64_t first_block, int64_t blocks) {
  py::array_t<uint32_t> out(4 * blocks);
  fastvae::cpu::kernels().words({seed, offset}, first_block, out.mutable_data(), blocks);
  return out;
}

// How often the threads of a GPU visit each of rows x columns elements.
py::array_t<uint8_t> visits(int64_t rows, int64_t columns, int vector, bool summed, int least,
                            int busy) {
  py::array_t<uint8_t> out({rows, columns});
  uint8_t* count = out.mutable_data();
  std::fill(count, count + rows * columns, uint8_t{0});
  const fastvae::Tiling t = fastvae::tile(rows, columns, vector, {summed, least, busy});
  for (int64_t block = 0; block < t.blocks; ++block) {
    for (int thread = 0; thread < fastvae::kThreads; ++thread) {
      const fastvae::Place p = fastvae::place_of(t, block, thread);
      if (p.row >= rows) continue;
      for (int64_t column = p.first; column < p.end; column += p.step)
        for (int64_t c = column; c < column + vector && c < p.end; ++c)
          ++count[p.row * columns + c];
    }
  }
  return out;
}

// The same of the cut for sums over the rows; -1 in all where two threads have one part of a
// column.
py::array_t<int8_t> column_visits(int64_t rows, int64_t columns, int vector) {
  py::array_t<int8_t> out({rows, columns});
  int8_t* count = out.mutable_data();
  std::fill(count, count + rows * columns, int8_t{0});
  const fastvae::ColumnTiling t = fastvae::tile_columns(rows, columns, vector);
  std::vector<bool> taken(static_cast<size_t>(t.parts * columns));
  for (int64_t block = 0; block < t.blocks; ++block) {
    for (int thread = 0; thread < fastvae::kThreads; ++thread) {
      const fastvae::ColumnPlace p = fastvae::column_place_of(t, block, thread);
      for (int64_t c = p.column; c < p.column + vector && c < columns; ++c) {
        const auto part = static_cast<size_t>(c * t.parts + p.part);
        if (taken.at(part)) std::fill(count, count + rows * columns, int8_t{-1});
        taken.at(part) = true;
        for (int64_t row = p.row; row < p.end; row += p.step) ++count[row * columns + c];
      }
    }
  }
  return out;
}

// The same of tensors of some sizes, none of them empty, in one launch.
std::vector<py::array_t<uint8_t>> visits_of_each(const std::vector<int64_t>& sizes) {
  if (sizes.size() > fastvae::kTensors)
    throw py::value_error("visits_of_each: sizes are too many for one launch");
  fastvae::Chunks chunks;
  std::vector<py::array_t<uint8_t>> out;
  for (const int64_t size : sizes) {
    fastvae::add_tensor(chunks, size);
    out.emplace_back(size);
    std::fill(out.back().mutable_data(), out.back().mutable_data() + size, uint8_t{0});
  }
  for (int64_t block = 0; block < chunks.blocks; ++block) {
    const int tensor = fastvae::tensor_of(chunks, block);
    const auto at = static_cast<size_t>(tensor);
    for (int thread = 0; thread < fastvae::kThreads; ++thread) {
      for (int v = 0; v < fastvae::kVectors; ++v) {
        const int64_t first = fastvae::element_of(chunks, tensor, block, thread, v);
        for (int64_t i = first; i < first + fastvae::kVector && i < sizes[at]; ++i)
          ++out[at].mutable_data()[i];
      }
    }
  }
  return out;
}

// The cut of rows x columns elements and the place of one thread in it.
py::dict place(int64_t rows, int64_t columns, int vector, bool summed, int64_t block, int thread,
               int least, int busy) {
  const fastvae::Tiling t = fastvae::tile(rows, columns, vector, {summed, least, busy});
  const fastvae::Place p = fastvae::place_of(t, block, thread);
  py::dict out;
  out["lanes"] = t.lanes;
  out["segments"] = t.segments;
  out["blocks"] = t.blocks;
  out["group"] = p.group;
  out["row"] = p.row;
  out["first"] = p.first;
  out["end"] = p.end;
  out["step"] = p.step;
  return out;
}

double value_of(double term) { return term; }
double value_of(formulas::LogTerm<double> term) {
  return formulas::product_or_zero(term.weight, term.size) + math::log1p(term.factor);
}

template <size_t>
using Double = double;

// A likelihood and its derivatives: of its parameters and the target.
template <class L, size_t... I>
void add_likelihood(py::module_ m, const std::string& name, std::index_sequence<I...>) {
  const auto add = [&](const std::string& suffix, const auto& part) {
    m.def((name + suffix).c_str(),
          py::vectorize([part](Double<I>... parameters, double x) -> double {
            return part(L::of(parameters..., x));
          }));
  };
  add("", [](const auto& e) { return value_of(e.nll); });
  (add(std::string("_grad_") + L::parameters[I], [](const auto& e) { return e.grad[I]; }), ...);
  add("_grad_target", [](const auto& e) { return e.grad_target; });
}

// The formulas in double, over numpy arrays: tests hold them against the papers without any loop.
void add_formulas(py::module_ m) {
#define FASTVAE_ADD(name)            \
  add_likelihood<likelihoods::name>( \
      m, #name, std::make_index_sequence<likelihoods::count<likelihoods::name>>());
  FASTVAE_EACH_LIKELIHOOD(FASTVAE_ADD)
#undef FASTVAE_ADD
  m.def("sigmoid", py::vectorize([](double l) { return formulas::sigmoid(l, formulas::odds(l)); }));
  m.def("gaussian_kl", py::vectorize([](double mu, double logvar) {
          return formulas::gaussian_kl(mu, math::exponential_of(logvar));
        }));
  m.def("gaussian_kl_grad_logvar", py::vectorize([](double logvar) {
          return formulas::gaussian_kl_grad_logvar(math::exponential_of(logvar));
        }));
  m.def("gaussian_kl_prior", py::vectorize([](double mu, double logvar, double pmu, double plv) {
          return formulas::gaussian_kl(formulas::prior_terms(mu, logvar, pmu, plv));
        }));
  m.def(
      "gaussian_kl_grad_prior_logvar",
      py::vectorize([](double mu, double logvar, double pmu, double plv) {
        return formulas::gaussian_kl_grad_prior_logvar(formulas::prior_terms(mu, logvar, pmu, plv));
      }));
  m.def("reparameterize", py::vectorize([](double mu, double logvar, double eps) {
          return formulas::reparameterize(mu, formulas::standard_deviation(logvar).value, eps);
        }));
  m.def("reparameterize_grad_logvar", py::vectorize([](double logvar, double eps) {
          return formulas::reparameterize_grad_logvar(formulas::standard_deviation(logvar).value,
                                                      eps);
        }));
}

}  // namespace

PYBIND11_MODULE(_hooks, m) {
  m.def("evaluate", &evaluate, py::arg("function"), py::arg("x"));
  m.def("words", &words, py::arg("seed"), py::arg("offset"), py::arg("first_block"),
        py::arg("blocks"));
  const fastvae::Cut cut;
  m.def("visits", &visits, py::arg("rows"), py::arg("columns"), py::arg("vector"),
        py::arg("summed"), py::arg("least") = cut.least, py::arg("busy") = cut.busy);
  m.def("column_visits", &column_visits, py::arg("rows"), py::arg("columns"), py::arg("vector"));
  m.def("visits_of_each", &visits_of_each, py::arg("sizes"));
  m.def("place", &place, py::arg("rows"), py::arg("columns"), py::arg("vector"), py::arg("summed"),
        py::arg("block"), py::arg("thread"), py::arg("least") = cut.least,
        py::arg("busy") = cut.busy);
  add_formulas(m.def_submodule("formulas"));
}
