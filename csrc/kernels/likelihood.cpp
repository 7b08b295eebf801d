// The passes of one likelihood, FASTVAE_LIKELIHOOD: CMakeLists.txt compiles this file once for each
// likelihood of the table in likelihoods.h.
#include <utility>

#include "likelihoods.h"
#include "loops.h"

namespace fastvae::FASTVAE_DEVICE {
namespace {

template <class L>
struct Passes {
  static constexpr int N = likelihoods::count<L>;

  // Of the parameters and the target; or of the parameters but the last one, the target and the two
  // numbers that stand for that one.
  template <class... T>
  FASTVAE_FN auto element_of(T... x) {
    if constexpr (sizeof...(T) == N + 1)
      return L::of(x...);
    else
      return L::of_scale(x...);
  }

  // Of elements whose target is 0, where that is less work.
  template <class T, size_t... I>
  FASTVAE_FN auto element_of_zero(const T* all, std::index_sequence<I...>) {
    return L::of_zero(all[I]...);
  }
  template <bool zero, class... T>
  FASTVAE_FN auto element(T... x) {
    if constexpr (zero) {
      const std::common_type_t<T...> all[] = {x...};
      return element_of_zero(all, std::make_index_sequence<N>());
    } else {
      return element_of(x...);
    }
  }
  static constexpr bool knows_zeros = requires { L::knows_zeros; };
  // How many numbers the first of two steps leaves to the second, or 0.
  static constexpr int between = [] {
    if constexpr (requires { L::between; }) return L::between;
    return 0;
  }();

  struct FirstStep {
    template <class... T>
    FASTVAE_LAMBDA auto operator()(T... x) const {
      const std::common_type_t<T...> all[] = {x...};
      return of(all, std::make_index_sequence<N>());
    }
    template <class T, size_t... I>
    FASTVAE_LAMBDA static auto of(const T* x, std::index_sequence<I...>) {
      const auto e = L::first_of_zero(x[I]...);
      return values(e.nll, e.grad[0], e.grad[1]);
    }
  };

  // After the first step's numbers the inputs.
  template <class F>
  struct SecondStep {
    F f;
    template <class... T>
    FASTVAE_LAMBDA auto operator()(T... x) const {
      const std::common_type_t<T...> all[] = {x...};
      return f.of(of(all, std::make_index_sequence<between + N>()));
    }
    template <class T, size_t... I>
    FASTVAE_LAMBDA static auto of(const T* x, std::index_sequence<I...>) {
      return L::second_of_zero(x[I]...);
    }
  };
  static constexpr bool is_count = likelihoods::is_count(L::data);

  // The functions that the loops run; the upstream gradient g, where there is one, comes first. The
  // first n derivatives are those of parameters that are elements.

  template <bool zero = false>
  struct Nll {
    static constexpr bool is_long = is_count && N > 1;
    template <class... T>
    FASTVAE_LAMBDA auto operator()(T... x) const {
      return element<zero>(x...).nll;
    }
    auto of_zeros() const
      requires(knows_zeros && !zero)
    {
      return Nll<true>();
    }
  };

  template <int n, bool zero = false>
  struct NllAndGrads {
    static constexpr bool is_long = N > 1;
    double scale;
    auto of_zeros() const
      requires(knows_zeros && !zero)
    {
      return NllAndGrads<n, true>{scale};
    }
    static constexpr int between = zero ? Passes::between : 0;
    FirstStep first() const
      requires(between > 0)
    {
      return {};
    }
    SecondStep<NllAndGrads> second() const
      requires(between > 0)
    {
      return {*this};
    }
    template <class T, class... X>
    FASTVAE_LAMBDA auto operator()(T first, X... x) const {
      return of(element<zero>(first, x...));
    }
    template <class E>
    FASTVAE_LAMBDA auto of(const E& e) const {
      using T = std::remove_cvref_t<decltype(e.grad_target)>;
      return all(e.nll, e.grad, static_cast<T>(scale), std::make_index_sequence<n>());
    }
    template <class Term, class T, size_t... I>
    FASTVAE_LAMBDA static auto all(Term nll, const T* grad, T scale, std::index_sequence<I...>) {
      return term_and_values(nll, scale * grad[I]...);
    }
  };

  template <int n, bool zero = false>
  struct Grads {
    auto of_zeros() const
      requires(knows_zeros && !zero)
    {
      return Grads<n, true>();
    }
    template <class T, class... X>
    FASTVAE_LAMBDA auto operator()(T g, X... x) const {
      return all(g, element<zero>(x...).grad, std::make_index_sequence<n>());
    }
    template <class T, size_t... I>
    FASTVAE_LAMBDA static auto all(T g, const T* grad, std::index_sequence<I...>) {
      return values(g * grad[I]...);
    }
  };

  struct LastGrad {
    static constexpr bool is_long = is_count;
    template <class... T>
    FASTVAE_LAMBDA auto operator()(T... x) const {
      return element_of(x...).grad[N - 1];
    }
  };

  struct GradTarget {
    template <class T, class... X>
    FASTVAE_LAMBDA auto operator()(T g, X... x) const {
      return values(g * element_of(x...).grad_target);
    }
  };

  // Of the target, which need not be read.
  struct GradOfLinear {
    template <class T, class... X>
    FASTVAE_LAMBDA auto operator()(T g, X... x) const {
      return values(g * L::of(x..., T(0)).grad_target);
    }
  };

  // After the elements a direction of each: the product of the derivatives with it, which is
  // summed, and g times their own derivatives along it.
  struct Twice {
    template <class T, class... X>
    FASTVAE_LAMBDA auto operator()(T g, X... x) const {
      const T all[] = {x...};
      return along(g, all, all + N + 1, std::make_index_sequence<N + 1>(),
                   std::make_index_sequence<N>());
    }
    template <class T, size_t... E, size_t... I>
    FASTVAE_LAMBDA static auto along(T g, const T* x, const T* direction, std::index_sequence<E...>,
                                     std::index_sequence<I...>) {
      const auto e = L::of(Dual<T>(x[E], direction[E])...);
      const T product = (math::product_or_zero(direction[I], e.grad[I].value) + ... +
                         math::product_or_zero(direction[N], e.grad_target.value));
      return term_and_values(product, g * e.grad[I].tangent..., g * e.grad_target.tangent);
    }
  };

  template <size_t... I>
  static auto nll_of(std::index_sequence<I...>) -> decltype(L::of((void(I), 0.0f)...).nll);
  static constexpr Sum kSum =
      std::is_same_v<decltype(nll_of(std::make_index_sequence<N + 1>())), float> ? Sum::terms
                                                                                 : Sum::logs;

  // A loop has no code for what an operand never is.
  template <size_t i>
  using TypeOf = std::conditional_t<L::last_is_shared && i == N - 1, Shared, Input>;

  using Data = std::conditional_t<is_count, Counts, Target>;
  static Data target_of(const LikelihoodInputs& in) { return {in.target}; }

  template <class Pass, size_t... I>
  static void with_first(const LikelihoodInputs& in, const Pass& pass, std::index_sequence<I...>) {
    pass(TypeOf<I>{in.parameter[I]}...);
  }

  // pass.operator()<n>(complete, parameters...) with n parameters that are elements;
  // complete(f) takes after them and the target what stands for one that is not there.
  template <class Pass>
  static void with_parameters(const LikelihoodInputs& in, const Pass& pass) {
    if constexpr (likelihoods::has_scale<L>) {
      if (in.has_numbers) {
        const auto complete = [&](const auto& f) {
          return with_numbers(f, in.number[0], in.number[1]);
        };
        with_first(
            in, [&](const auto&... p) { pass.template operator()<N - 1>(complete, p...); },
            std::make_index_sequence<N - 1>());
        return;
      }
    }
    with_first(
        in,
        [&](const auto&... p) {
          pass.template operator()<N>([](const auto& f) { return f; }, p...);
        },
        std::make_index_sequence<N>());
  }

  template <int n>
  struct First {
    Output output[n];
    explicit First(const Output* all) {
      for (int i = 0; i < n; ++i) output[i] = all[i];
    }
  };

  static void sum(Extent extent, const LikelihoodInputs& in, Sums out) {
    with_parameters(in, [&]<int n>(const auto& complete, const auto&... p) {
      row_sum<kSum>(extent, out, complete(Nll<>()), p..., target_of(in));
    });
  }

  static void sum_with_grads(Extent extent, const LikelihoodInputs& in, double scale, Sums out,
                             const Output* grads) {
    with_parameters(in, [&]<int n>(const auto& complete, const auto&... p) {
      row_sum_and_map<kSum>(extent, out, First<n>(grads).output, complete(NllAndGrads<n>{scale}),
                            p..., target_of(in));
    });
  }

  static void sum_with_grads_and_columns(Extent extent, const LikelihoodInputs& in, double scale,
                                         Sums out, const Output* grads, Sums last) {
    if constexpr (L::last_is_shared)
      with_first(
          in,
          [&](const auto&... p) {
            row_sum_map_and_column_sum(extent, out, First<N - 1>(grads).output, {last},
                                       NllAndGrads<N>{scale}, p..., target_of(in));
          },
          std::make_index_sequence<N>());
  }

  static void backward(Extent extent, PerRow g, const LikelihoodInputs& in, const Output* grads) {
    with_parameters(in, [&]<int n>(const auto& complete, const auto&... p) {
      map(extent, First<n>(grads).output, complete(Grads<n>()), g, p..., target_of(in));
    });
  }

  static void backward_target(Extent extent, PerRow g, const LikelihoodInputs& in,
                              Output grad_target) {
    with_parameters(in, [&]<int n>(const auto& complete, const auto&... p) {
      if constexpr (L::is_linear)
        map_folding(extent, {grad_target}, GradOfLinear(), g, p...);
      else
        map_folding(extent, {grad_target}, complete(GradTarget()), g, p..., target_of(in));
    });
  }

  static void backward_columns(Extent extent, PerRow g, const LikelihoodInputs& in,
                               const Output* grads, Sums last) {
    if constexpr (L::last_is_shared)
      with_first(
          in,
          [&](const auto&... p) {
            map_and_column_sum(extent, First<N - 1>(grads).output, {last}, Grads<N>(), g, p...,
                               target_of(in));
          },
          std::make_index_sequence<N>());
  }

  static void last_rows(Extent extent, const LikelihoodInputs& in, Sums last) {
    if constexpr (L::last_is_shared)
      with_first(
          in,
          [&](const auto&... p) {
            if constexpr (likelihoods::has_scale<L>) {
              if (in.has_numbers) {
                row_sum(extent, last, with_numbers(LastGrad(), in.number[0], in.number[1]), p...,
                        target_of(in));
                return;
              }
            }
            row_sum(extent, last, LastGrad(), p..., PerRow{in.parameter[N - 1]}, target_of(in));
          },
          std::make_index_sequence<N - 1>());
  }

  template <size_t... I>
  static void twice(Extent extent, PerRow g, const LikelihoodInputs& in,
                    const LikelihoodInputs& direction, Sums grad_g, const Output* grads,
                    std::index_sequence<I...>) {
    seldom_row_sum_and_map(extent, grad_g, First<N + 1>(grads).output, Twice(), g,
                           TypeOf<I>{in.parameter[I]}..., target_of(in),
                           TypeOf<I>{direction.parameter[I]}..., Input{direction.target});
  }

  static void backward_twice(Extent extent, PerRow g, const LikelihoodInputs& in,
                             const LikelihoodInputs& direction, Sums grad_g, const Output* grads) {
    twice(extent, g, in, direction, grad_g, grads, std::make_index_sequence<N>());
  }
};

using L = likelihoods::FASTVAE_LIKELIHOOD;

}  // namespace

const LikelihoodKernels FASTVAE_KERNELS_OF(FASTVAE_LIKELIHOOD) = {
    .sum = Passes<L>::sum,
    .sum_with_grads = Passes<L>::sum_with_grads,
    .sum_with_grads_and_columns = Passes<L>::sum_with_grads_and_columns,
    .backward = Passes<L>::backward,
    .backward_target = Passes<L>::backward_target,
    .backward_columns = Passes<L>::backward_columns,
    .last_rows = Passes<L>::last_rows,
    .backward_twice = Passes<L>::backward_twice,
};

}  // namespace fastvae::FASTVAE_DEVICE
